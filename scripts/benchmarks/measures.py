"""Measures against other libraries and hand-made labels: metrics, emotion clues, F0, the speech gate.

python scripts/benchmarks/measures.py metrics | clues | f0 | gate
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import benchmark, clips_of, in_turns, main, middle, print_table, ratios
from scipy.stats import binomtest

Numbers = np.ndarray


@benchmark(captions=10_000, references=5, rounds=5)
def metrics(a: argparse.Namespace) -> None:
    """Time of BLEU-1..4, ROUGE-L and CIDEr-D against pycocoevalcap's, on the same tokens in the same run.

        pip install --no-deps --target coco pycocoevalcap==1.2
        PYTHONPATH=coco python scripts/benchmarks/measures.py metrics

    Scores of the corpus and of every clip must agree within 1e-6 first. What counts as pycocoevalcap's time
    is its scorers: Bleu(4), Rouge(), Cider(). Tokenising is timed on its own: ours with an empty cache, and
    its PTBTokenizer where there is Java. One core; two minutes.
    """
    from fixtures.make_metrics_200 import FEELING, sentence

    from aligncap.evaluation.metrics.ngram import (
        bleu_counts,
        bleu_scores,
        cider_d,
        count_ngrams,
        rouge_l,
    )
    from aligncap.evaluation.metrics.tokens import tokenize

    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; see --help") from None
    rng, labels = random.Random(0), sorted(FEELING)
    texts, groups = [], []
    for _ in range(a.captions):  # seven in ten captions have the emotion of their references
        label = rng.choice(labels)
        texts.append(sentence(rng, label if rng.random() < 0.7 else rng.choice(labels)))
        groups.append([sentence(rng, label) for _ in range(a.references)])

    def tokens() -> tuple[list[Any], list[Any]]:
        tokenize.cache_clear()
        return [tokenize(text) for text in texts], [[tokenize(t) for t in group] for group in groups]

    said, targets = tokens()
    their_said = {clip: [" ".join(words)] for clip, words in enumerate(said)}
    theirs = {clip: [" ".join(words) for words in group] for clip, group in enumerate(targets)}

    def bleu() -> list[Any]:
        counts = bleu_counts(count_ngrams(said, targets))
        return [bleu_scores(counts.sum(axis=0)), bleu_scores(counts).T]

    def rouge() -> list[Any]:
        scores = rouge_l(said, targets)
        return [scores.mean(), scores]

    def cider() -> list[Any]:
        scores = cider_d(count_ngrams(said, targets))
        return [scores.mean(), scores]

    def ptb(_: int) -> Any:
        tokenizer = PTBTokenizer()
        references = {clip: [{"caption": t} for t in group] for clip, group in enumerate(groups)}
        tokenizer.tokenize(references)
        return tokenizer.tokenize({clip: [{"caption": text}] for clip, text in enumerate(texts)})

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "BLEU-1 to 4": (bleu, lambda: Bleu(4).compute_score(theirs, their_said, verbose=0)),
        "ROUGE-L": (rouge, lambda: Rouge().compute_score(theirs, their_said)),
        "CIDEr-D": (cider, lambda: Cider().compute_score(theirs, their_said)),
    }
    for name, (ours, other) in pairs.items():
        gaps = [np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(ours(), other(), strict=True)]
        assert max(gaps) <= 1e-6, f"{name}: differs from pycocoevalcap by {max(gaps):.2e}"
        print(f"{name}: equal, largest difference {max(gaps):.1e}")
    ways: dict[tuple[str, str], Callable[[int], Any]] = {}
    for name, (ours, other) in pairs.items():
        ways[name, "ours"] = lambda _, call=ours: call()  # type: ignore[misc]
        ways[name, "theirs"] = lambda _, call=other: call()  # type: ignore[misc]
    ways["tokenising", "ours"] = lambda _: tokens()
    if shutil.which("java"):
        ways["tokenising", "theirs"] = ptb
    seconds = in_turns(ways, a.rounds)
    for who in ("ours", "theirs"):
        seconds["all three", who] = np.sum([seconds[name, who] for name in pairs], axis=0).tolist()
    print(f"\n{a.captions} captions x {a.references} references, {a.rounds} rounds")
    rows = []
    for name in (*pairs, "all three", "tokenising"):
        mine, other_s = seconds[name, "ours"], seconds.get((name, "theirs"))
        compared = [middle(other_s, 3), middle(ratios(mine, other_s), 3)] if other_s else ["no Java", ""]
        rows.append([name, middle(mine, 3), *compared])
    print_table(["", "ours, s", "pycocoevalcap, s", "share of its time"], rows)


@benchmark(model="default", errors=str)
def clues(a: argparse.Namespace) -> None:
    """How well emotion clues are found: precision, recall, F1 on the hand-labelled data/gold/clue_gold.jsonl.

    Systems: `parse` (spaCy), `rules` (no model), `tags` (the part-of-speech baseline MD, UH, RB*, JJ* of
    earlier work; English only). A clue counts as found if its lower-cased text equals a labelled one; counts
    are summed over captions. The labels were written before tuning, in halves; tuning went by errors on
    `dev`, but labels and word lists have one author: on captions of other writers expect less than `test`
    says.

    Labelling: a clue is the words as written, "not" (不, 没有) before negated ones, degree kept ("slightly
    sad", "a hint of sadness", "great joy"); a high or low pitch, volume, energy keeps that noun ("high
    pitch"), in Chinese a one-character quality keeps its own (语速较快); what is talked about, who speaks and
    when are left out.
    """
    from aligncap.text.clues import ClueParser, load_spacy
    from aligncap.utils.io import data_path, read_jsonl

    def tags(captions: list[str]) -> list[list[str]]:
        nlp = load_spacy(a.model)
        assert nlp is not None
        starts = ("MD", "UH", "RB", "JJ")
        return [
            list(dict.fromkeys(t.text.lower() for t in doc if t.tag_.startswith(starts)))
            for doc in nlp.pipe(captions)
        ]

    rows = read_jsonl(data_path("gold/clue_gold.jsonl"))
    systems = {"parse": ClueParser(a.model).parse, "rules": ClueParser(None).parse, "tags": tags}
    lines = []
    for name, system in systems.items():
        for language in ("en", "zh") if name != "tags" else ("en",):
            for split in ("dev", "test", "all"):
                part = [r for r in rows if r["language"] == language and split in (r["split"], "all")]
                found, gold = system([r["caption"] for r in part]), [r["clues"] for r in part]
                right = sum((Counter(f) & Counter(g)).total() for f, g in zip(found, gold, strict=True))
                many, wanted = sum(map(len, found)), sum(map(len, gold))
                marks = (right / max(many, 1), right / max(wanted, 1), 2 * right / max(many + wanted, 1))
                lines.append([name, language, split, str(len(part)), *(f"{mark:.3f}" for mark in marks)])
                if a.errors == split and name != "tags":
                    for row, own in zip(part, found, strict=True):
                        if own != row["clues"]:
                            print(
                                f"{name} {row['id']} {row['caption']}\n    {own}\n    labelled {row['clues']}"
                            )
    print_table(["system", "language", "split", "captions", "P", "R", "F1"], lines)
    english = [r["caption"] for r in rows if r["language"] == "en"]
    captions = [f"{english[i % len(english)]} {i}" for i in range(5000)]
    for name in ("parse", "rules"):
        start = time.process_time()
        systems[name](captions)
        print(f"{name}: 5,000 different English captions in {time.process_time() - start:.1f} s of CPU")


RATE = 16_000
SECONDS = 2.0
F0_MIN, F0_MAX = 60.0, 700.0
FORMANTS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}
Track = Callable[[Numbers], tuple[Numbers, Numbers]]  # times in seconds, F0 in Hz with 0 for unvoiced


def swift() -> Track:
    from swift_f0 import SwiftF0

    detector = SwiftF0(threads=1, spin=False)

    def track(samples: Numbers) -> tuple[Numbers, Numbers]:
        result = detector.detect(samples, RATE, fmin=F0_MIN, fmax=F0_MAX)
        return result.timestamps, np.where(result.confidence >= 0.5, result.pitch_hz, 0.0)

    return track


def world(name: str) -> Track:
    import pyworld

    def track(samples: Numbers) -> tuple[Numbers, Numbers]:
        x = samples.astype(np.float64)
        own = getattr(pyworld, name)
        found, times = own(x, RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=16.0)
        return times, pyworld.stonemask(x, found, times, RATE) if name == "dio" else found

    return track


TRACKERS: dict[str, Callable[[], Track]] = {
    "swift-f0": swift,
    "pyworld-dio": lambda: world("dio"),
    "pyworld-harvest": lambda: world("harvest"),
}


def contours() -> Iterator[Numbers]:
    """F0 in Hz at every sample: steady, sweeps, vibrato."""
    t = np.arange(int(SECONDS * RATE)) / RATE
    yield from (np.full_like(t, hertz) for hertz in (70.0, 90, 120, 160, 220, 300, 400, 500))
    for low, high in ((80, 200), (150, 400), (250, 500)):
        yield low * (high / low) ** (t / SECONDS)
        yield high * (low / high) ** (t / SECONDS)
    yield from (hertz * 2 ** (np.sin(2 * np.pi * 6 * t) / 12) for hertz in (110, 220, 350))


def harmonics(track: Numbers, formants: tuple[int, ...] = ()) -> Numbers:
    """All harmonics below 7 kHz: equal ones, or at -12 dB/octave through resonances of 80 to 120 Hz."""
    phase = 2 * np.pi * np.cumsum(track) / RATE
    out = np.zeros_like(track)
    for k in range(1, int(7000 / track.min()) + 1):
        hertz = k * track
        gain = np.full_like(hertz, 1 / k if formants else 1.0)
        for centre, width in zip(formants, (80, 100, 120), strict=False):
            gain += 2 / k / (1 + ((hertz - centre) / width) ** 2)
        out += gain * np.cos(k * phase) * (hertz < 7000)
    return out / np.abs(out).max()


def sounds() -> Iterator[tuple[str, Numbers, Numbers]]:
    """Group, samples and F0 at every sample (Hz, 0 where there is no voice)."""
    rng, rest = np.random.default_rng(0), np.zeros(int(0.2 * RATE))
    for track in contours():
        kinds = [("sine", np.sin(2 * np.pi * np.cumsum(track) / RATE)), ("pulses", harmonics(track))]
        kinds += [("vowel", harmonics(track, formants)) for formants in FORMANTS.values()]
        for kind, wave in kinds:
            clean, truth = np.concatenate([rest, wave, rest]), np.concatenate([rest, track, rest])
            for snr, name in ((60, "clean"), (20, "20 dB"), (10, "10 dB")):
                noise = rng.standard_normal(len(clean)) * np.sqrt(np.mean(wave**2) / 10 ** (snr / 10))
                mixed = clean + noise
                yield f"{kind:6} {name}", (mixed * 0.5 / np.abs(mixed).max()).astype(np.float32), truth


def errors_of(truth: Numbers, times: Numbers, found: Numbers) -> dict[str, Numbers]:
    """Frames by kind, leaving out 50 ms round the edges of the voice; "cents" of those near the truth."""
    centre, margin = np.minimum((times * RATE).astype(int), len(truth) - 1), int(0.05 * RATE)
    before, after = np.maximum(centre - margin, 0), np.minimum(centre + margin, len(truth) - 1)
    own, steady = truth[centre], (truth[before] > 0) == (truth[after] > 0)
    voiced, silent = steady & (own > 0), steady & (own == 0)
    both = voiced & (found > 0)
    ratio = found[both] / own[both]
    gross = np.abs(ratio - 1) > 0.2
    octave = gross & ((np.abs(ratio - 2) < 0.06) | (np.abs(ratio - 0.5) < 0.015))
    cents = 1200 * np.abs(np.log2(ratio[~gross]))
    return {
        "gross": gross,
        "octave": octave,
        "cents": cents,
        "missed": found[voiced] == 0,
        "false": found[silent] > 0,
    }


@benchmark(only=["swift-f0", "pyworld-dio", "pyworld-harvest"])
def f0(a: argparse.Namespace) -> None:
    """F0 libraries on synthetic sounds of known F0: accuracy, octave errors and cost.

    Every sound is 2 s at 16 kHz: sines, pulse trains and vowels (pulse trains through three formants) at 70
    to 500 Hz, sweeps and vibrato, each clean (60 dB SNR) and with white noise at 20 and 10 dB SNR. The 0.2 s
    before and after hold the noise alone, to count frames called voiced where there is no voice.

    Columns: gross = voiced frames off by more than 20 %; octave = those within 3 % of half or double the
    truth; cents = median absolute error of the other frames; missed = voiced frames called unvoiced; false =
    unvoiced frames called voiced; cost = CPU seconds per second of sound, best of three. All libraries take 3
    to 4 minutes of CPU.

    pyworld is no dependency: `pip install pyworld "setuptools<81"` to have its rows.
    """
    made = list(sounds())
    rows = []
    for name in a.only:
        try:
            track = TRACKERS[name]()
        except ImportError as error:
            print(f"{name}: not installed ({error.name})")
            continue
        some = [samples for _, samples, _ in made[::15]]
        costs = []
        for _ in range(4):  # the first call compiles or allocates
            start = time.process_time()
            for samples in some:
                track(samples)
            costs.append((time.process_time() - start) / sum(len(s) / RATE for s in some))
        groups: dict[str, list[dict[str, Numbers]]] = {}
        for group, samples, truth in made:
            errors = errors_of(truth, *track(samples))
            groups.setdefault(group, []).append(errors)
            groups.setdefault("all", []).append(errors)
        for group, parts in sorted(groups.items()):
            kept = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
            numbers = [f"{100 * kept[kind].mean():.2f}" for kind in ("gross", "octave")]
            numbers += [f"{np.median(kept['cents']):.1f}"]
            numbers += [f"{100 * kept[kind].mean():.1f}" for kind in ("missed", "false")]
            rows.append([name, group, *numbers, f"{min(costs[1:]):.4f}" if group == "all" else ""])
    head = ["library", "sounds", "gross %", "octave %", "cents", "missed %", "false %", "CPU s/s"]
    print_table(head, rows)


@benchmark(manifests=[""], sounds=100, clips=400)
def gate(a: argparse.Namespace) -> None:
    """How often the gate before the model (`audio.speech`) hears speech, where there is some and where not.

        python scripts/benchmarks/measures.py gate --manifests ravdess.jsonl emovo.jsonl

    `--sounds` made sounds of each kind of `audio.nonspeech`, of 0.5 to 10 s; of each manifest `--clips` clips
    drawn over all, as they are and as steady noise of their long-term spectrum (`--condition noise`).
    Wilson's interval, 95 %, which takes clips of one speaker for independent. 0.1 s a clip.
    """
    from aligncap.audio.nonspeech import KINDS, nonspeech
    from aligncap.audio.speech import has_speech
    from aligncap.inference.conditions import noise

    rows = []

    def told(name: str, heard: list[bool], speech: bool) -> None:
        wrong, n = sum(h is not speech for h in heard), len(heard)
        low, high = (100 * x for x in binomtest(wrong, n).proportion_ci(method="wilson"))
        wanted = "speech" if speech else "none"
        rows.append([name, wanted, str(n), f"{100 * wrong / n:.1f} [{low:.1f}, {high:.1f}]"])

    for kind in KINDS:
        lengths = np.random.default_rng(0).uniform(0.5, 10, a.sounds)
        told(kind, [has_speech(nonspeech(kind, s, seed)) for seed, s in enumerate(lengths, 1000)], False)
    for manifest in filter(None, a.manifests):
        clips = clips_of(Path(manifest), a.clips)
        told(manifest, [has_speech(clip) for clip in clips], True)
        told(f"{manifest}, as noise", [has_speech(noise(clip, i)) for i, clip in enumerate(clips)], False)
    print_table(["sound", "what is in it", "sounds", "% taken for the other"], rows)


if __name__ == "__main__":
    main(__doc__)
