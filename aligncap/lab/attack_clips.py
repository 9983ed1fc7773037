"""White-box attacks on a speech model: clips whose answer is right are turned to another emotion.

The gradient comes from the label words' logits at the answer position, through the language model, encoder
and log-mel to the samples at 16 kHz. Only clips whose clean answer is right are attacked, and where the model
can write down words only those whose words were right too: an attack on a broken baseline proves nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import SAMPLE_RATE
from aligncap.data.manifest import Utterance
from aligncap.data.split import choose_evenly
from aligncap.lab.asking import Asked, SpeechSubject
from aligncap.lab.attack import (
    Aim,
    Attack,
    Bounds,
    audible_share,
    masking_threshold,
    noisy_copies,
    pgd,
    resampled_with_noise,
)
from aligncap.lab.diagnose_parts import DESCRIPTION_TOKENS, Collector, Wording, ask_wordings, transcribing
from aligncap.lab.label_answers import read_said
from aligncap.lab.label_words import label_logits
from aligncap.lab.models import Question, SpeechModel
from aligncap.text.prompts import response_ids
from aligncap.text.transcripts import word_errors
from aligncap.utils.io import Row

RIGHT_WER = 0.3  # of a clean transcript that counts as right
VOTES = 5
DEFENCES = ("8 kHz and noise", "vote of noisy copies")


@dataclass(frozen=True)
class AttackOptions:
    """snrs: from the softest perturbation to the loudest, dB; the search goes on from one to the next."""

    snrs: tuple[float, ...] = (60.0, 50.0, 40.0, 30.0)
    steps: int = 12
    restarts: int = 1
    price: float = 1.0  # of a nat a token of the transcript
    audible: float = 0.0  # weight of what is above masking
    limit: float = math.inf  # largest sample of a perturbation, full scale 1


def answers(subject: SpeechSubject, clips: Sequence[np.ndarray], main: Wording) -> list[str]:
    """The label that the main wording's answer gives to each clip, "none" of an invalid one."""
    said = [row[main.name]["said"] for row in ask_wordings(subject, clips, [main])]
    return read_said(said, subject.labels, lenient=main.own)


def aim_at(
    model: SpeechModel,
    tokens: dict[str, list[int]],
    main: Wording,
    target: str,
    transcript: tuple[str, str] | None,
    begun: str = "",
) -> Callable[[Tensor], Aim]:
    """Of samples (n,): how far the target's logit is above the best other label's; as the price what the
    clean transcript loses, nats a token.

    Args:
        tokens: of `label_tokens`. transcript: (instruction, what was written of the clean clip).
    """
    labels = list(tokens)
    place = labels.index(target)
    others = [i for i in range(len(labels)) if i != place]
    question = Question(main.question, begun=begun)
    words = response_ids(model.tokenizer, transcript[1]) if transcript else []

    def aim(samples: Tensor) -> Aim:
        heard = model.listen([samples])
        scores = label_logits(model.run(model.prefill(heard, [question])).logits, tokens)[0]
        margin = scores[place] - scores[others].max()
        if transcript is None:
            return Aim(margin)
        asked = model.prefill(heard, [Question(transcript[0])])
        return Aim(margin, -model.likelihood(asked, [words])[0] / len(words))

    return aim


def attack_clip(
    subject: SpeechSubject,
    u: Utterance,
    samples: np.ndarray,
    main: Wording,
    target: str,
    options: AttackOptions,
    *,
    written: str | None,
    begun: str = "",
) -> tuple[Row, dict[float, np.ndarray]]:
    """Attack one clip at each SNR, softest first; a perturbation that turned it at one SNR counts at louder
    ones.

    Args:
        written: the clean transcript; None: the model cannot be asked for words.

    Returns:
        {"id", "truth", "target", "levels": [{"snr_db", "turned", "said", "margin", "audible", "passes", "wer"
        of the transcript}]}, and the attacked samples by SNR; "turned" is told by the answer itself.
    """
    clip = torch.from_numpy(np.asarray(samples, dtype=np.float32))
    told = (transcribing(u.language), written) if written else None
    aim = aim_at(subject.model, subject.tokens, main, target, told, begun)
    threshold = masking_threshold(clip)
    levels, heard = [], {}
    found: Attack | None = None
    turned, said = False, ""
    for snr in options.snrs:
        passes = 0
        if not turned:
            found = pgd(
                aim,
                clip,
                Bounds(snr, options.limit),
                steps=options.steps,
                restarts=options.restarts,
                price=options.price,
                threshold=threshold,
                audible=options.audible,
                start=found.delta if found else None,
                confidence=0.5,
            )
            passes = found.passes
            attacked = (clip + found.delta).numpy()
            said = answers(subject, [attacked], main)[0]
            turned = said == target
        assert found is not None
        heard[snr] = (clip + found.delta).numpy()
        row: Row = {"snr_db": snr, "turned": turned, "said": said, "margin": found.margin, "passes": passes}
        row["audible"] = audible_share(found.delta, threshold)
        levels.append(row)
    if told is not None:
        asked = Asked([told[0]] * len(heard), DESCRIPTION_TOKENS)
        replies = subject.ask(list(heard.values()), [asked])
        for row, (reply,) in zip(levels, replies, strict=True):
            errors, count = word_errors(u.transcript or "", reply.said)
            row["wer"] = errors / max(1, count)
    return {"id": u.id, "truth": u.emotion, "target": target, "levels": levels}, heard


def defended(subject: SpeechSubject, samples: np.ndarray, main: Wording) -> dict[str, str]:
    """The answer to a clip after each of DEFENCES."""
    plain = answers(subject, [resampled_with_noise(samples)], main)[0]
    votes = Counter(answers(subject, noisy_copies(samples, VOTES), main))
    return dict(zip(DEFENCES, (plain, votes.most_common(1)[0][0]), strict=True))


def collect_attacks(
    about: Collector,
    subject: SpeechSubject,
    clips: Sequence[Utterance],
    main: Wording,
    options: AttackOptions,
    written: dict[str, str],
    out: Path,
    begun: str = "",
) -> list[Row]:
    """A row for each clip of `attack_clip`, with "clean_defended" and "attacked_defended" (of the loudest
    attack); the clean and attacked sounds are written to `out`.

    Args:
        written: clean transcripts by id; of other clips the words are not kept.
    """
    out.mkdir(parents=True, exist_ok=True)

    def work(own: Sequence[Utterance], sounds: Sequence[np.ndarray]) -> list[Row]:
        rows = []
        for u, samples in zip(own, sounds, strict=True):
            others = [label for label in subject.labels if label != u.emotion]
            target = others[sum(map(ord, u.id)) % len(others)]
            row, heard = attack_clip(
                subject, u, samples, main, target, options, written=written.get(u.id), begun=begun
            )
            row["clean_defended"] = defended(subject, samples, main)
            row["attacked_defended"] = defended(subject, heard[options.snrs[-1]], main)
            row["files"] = _write(out, re.sub(r"[^\w.-]", "_", u.id), samples, heard)
            rows.append(row)
        return rows

    single = Collector(about.subject, about.paths, about.journal, batch_size=1)
    return single.over(f"attack {options}", clips, work, "attacked clips")


def _write(out: Path, stem: str, clean: np.ndarray, heard: dict[float, np.ndarray]) -> dict[str, str]:
    import soundfile

    files = {"clean": f"{stem}-clean.wav"} | {f"{snr:g}": f"{stem}-{snr:g}dB.wav" for snr in heard}
    for name, samples in zip(files.values(), (clean, *heard.values()), strict=True):
        soundfile.write(out / name, samples, SAMPLE_RATE, subtype="FLOAT")
    return files


def attack_numbers(rows: Sequence[Row], options: AttackOptions) -> Row:
    """Clips turned at each SNR, words kept, and what the defences do.

    Returns:
        {"clips", "levels": [{"snr_db", "clips", "turned", "changed" (any other answer), "wer", "audible"}],
        "defences": {name: {"clean", "clean_right", "attacked", "attacked_right"}}, "rows"}.
    """
    levels = []
    for place, snr in enumerate(options.snrs):
        own = [row["levels"][place] for row in rows]
        rates = [level["wer"] for level in own if "wer" in level]
        levels.append(
            {
                "snr_db": snr,
                "clips": len(own),
                "turned": sum(level["turned"] for level in own),
                "changed": sum(level["said"] != row["truth"] for row, level in zip(rows, own, strict=True)),
                "wer": float(np.mean(rates)) if rates else None,
                "audible": float(np.mean([level["audible"] for level in own])),
            }
        )
    hit = [row for row in rows if row["levels"][-1]["turned"]]
    defences = {
        name: {
            "clean": len(rows),
            "clean_right": sum(row["clean_defended"][name] == row["truth"] for row in rows),
            "attacked": len(hit),
            "attacked_right": sum(row["attacked_defended"][name] == row["truth"] for row in hit),
        }
        for name in DEFENCES
    }
    return {"clips": len(rows), "levels": levels, "defences": defences, "rows": list(rows)}


def transferred(other: SpeechSubject, rows: Sequence[Row], main: Wording, folder: Path, name: str) -> Row:
    """Whether clips that were turned turn another model too: asked of those that it answers rightly when
    clean.

    Returns:
        {"model", "clips", "turned" (to the same target), "changed" (to any other answer)}.
    """
    import soundfile

    hit = [row for row in rows if row["levels"][-1]["turned"]]
    found: Row = {"model": name, "clips": 0, "turned": 0, "changed": 0}
    for row in hit:
        last = f"{row['levels'][-1]['snr_db']:g}"
        files = [folder / row["files"][key] for key in ("clean", last)]
        before, after = answers(other, [soundfile.read(f, dtype="float32")[0] for f in files], main)
        if before == row["truth"]:
            found["clips"] += 1
            found["turned"] += after == row["target"]
            found["changed"] += after != row["truth"]
    return found


def attackable(
    clips: Sequence[Utterance],
    said: Sequence[str],
    words: dict[str, str] | None,
    limit: int,
) -> tuple[list[Utterance], Row]:
    """Up to `limit` clips, labels even, whose clean answer, and transcript where there is one, are right; and
    the counts.

    Args:
        said: the label of each clean answer. words: clean transcripts by id, of a model that can transcribe.
    """
    right = [u for u, label in zip(clips, said, strict=True) if label == u.emotion]
    kept = right
    if words is not None:
        rated = [(u, word_errors(u.transcript or "", words[u.id])) for u in right if u.id in words]
        kept = [u for u, (errors, count) in rated if count and errors / count <= RIGHT_WER]
    counts = {"answered": len(clips), "right": len(right), "words_right": len(kept) if words else None}
    return [kept[i] for i in choose_evenly(kept, limit, 0)], counts
