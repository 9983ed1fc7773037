"""From answers to numbers: labels, priors, prompts, faults and words, with intervals by speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.lab.diagnose_parts import HOP_TITLE, Wording
from aligncap.lab.faults import FAULTS
from aligncap.lab.label_answers import (
    Labelled,
    mean_prior,
    probabilities,
    probability_statistics,
    read_said,
    recall,
    recognition,
)
from aligncap.text.answers import NONE, plain
from aligncap.text.emotions import emotion_of
from aligncap.text.lexicon import caption_words
from aligncap.text.transcripts import character_errors, near_duplicates, refuses, word_errors
from aligncap.utils.io import Row
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Run,
    clusters_of,
    correct,
    difference,
    exchanged,
    intervals,
    mean,
    paired_differences,
    ratio,
)

SHOWN = 8  # answers that are listed
TRANSCRIBES = 0.5  # word error rate below which a model is said to transcribe
PRIORS = {
    "raw": "as they are",
    "silence": "less what silence gives",
    "contentless": "less what “N/A” of silence gives",
    "mean": "less the mean over these clips",
}


def labelled(clips: Sequence[Utterance], labels: Sequence[str]) -> Labelled:
    """The truth of clips, and their speakers."""
    voices = [(u.corpus, u.speaker) for u in clips]
    return Labelled([str(u.emotion) for u in clips], list(labels), clusters_of(clips), voices)


def scores_of(rows: Sequence[Row]) -> Floats:
    """(clips, labels)."""
    return np.array([row["scores"] for row in rows], dtype=np.float64)


# ---- labels


def label_numbers(
    rows: Sequence[Row], priors: Row, chosen: Sequence[Wording], about: Labelled
) -> dict[str, Row]:
    """By wording `recognition`, the largest group of near-duplicates among answers, and under "probabilities"
    those of PRIORS."""
    found = {}
    for wording in chosen:
        own = [row[wording.name] for row in rows]
        texts = [row["said"] for row in own]
        if wording.own:  # a description counts for the emotion that it names
            texts = [label if label != NONE else text for label, text in _named(texts, about)]
        scores = scores_of(own)
        silent, empty = (priors[kind].get(wording.name) for kind in ("silence", "contentless"))
        taken = {
            "raw": None,
            "silence": silent and np.array(silent["scores"]),
            "contentless": empty and np.array(empty["scores"]),
            "mean": mean_prior(scores),
        }
        found[wording.name] = {
            "question": wording.question,
            "language": wording.language,
            **recognition(texts, about, [row["samples"] for row in own if "samples" in row]),
            "repeated": repeated([row["said"] for row in own], about.units),
            "silence_says": silent["said"] if silent else None,
            "probabilities": {
                name: probabilities(scores, prior, about)
                for name, prior in taken.items()
                if name == "raw" or prior is not None
            },
        }
    return found


def _named(texts: Sequence[str], about: Labelled) -> list[tuple[str, str]]:
    return list(zip(read_said(texts, about.labels, lenient=True), texts, strict=True))


def repeated(texts: Sequence[str], units: Clusters) -> Row:
    """The largest group of answers that say almost the same: its share with interval, its text, all groups'
    number."""
    groups = near_duplicates(texts)
    top = np.array([group == 0 for group in groups], dtype=np.float64)
    first = Counter(text for text, group in zip(texts, groups, strict=True) if group == 0)
    return {
        "share": intervals({"share": mean(top)}, units)["share"],
        "answer": first.most_common(1)[0][0] if first else None,
        "groups": len(set(groups)),
        "longest": max((len(caption_words(text)) for text in texts), default=0),
    }


# ---- prompts


def prompt_numbers(rows: Sequence[Row], said: Sequence[str], about: Labelled, main: Wording) -> Row:
    """What other questions and noise change.

    Args:
        rows: of `collect_prompts`; said: the same clips' answers to the main wording.

    Returns:
        "repeated" and commonest answers by question; with intervals "noise_same" (share of clips whose answer
        stays when noise takes their place), "own_names_emotion", "unrelated_names_emotion" (answers the
        question that was trained, not the one that was asked), "leading_suggested" and "leading_right"
        (follows the question or the voice), "plain_right" (the voice, without a suggestion), and
        "plain_suggested" (says the other label unasked).
    """
    kinds = [kind for kind in ("own", "none", "unrelated", "leading", "noise") if kind in rows[0]]
    answers = {kind: [str(row[kind]) for row in rows] for kind in kinds}

    def share(values: Sequence[bool]) -> Run:
        return {"share": mean(np.array(values, dtype=np.float64))}

    suggested = [row["suggested"] for row in rows]
    own = read_said(said, about.labels, lenient=main.own)
    shares = {
        "noise_same": [_alike(a, b, about, main) for a, b in zip(said, answers["noise"], strict=True)],
        "own_names_emotion": [emotion_of(text) is not None for text in answers["own"]],
        "plain_right": [a == t for a, t in zip(own, about.truth, strict=True)],
        "plain_suggested": [a == s for a, s in zip(own, suggested, strict=True)],
    }
    if "leading" in answers:
        led = read_said(answers["leading"], about.labels, lenient=True)
        shares |= {
            "unrelated_names_emotion": [emotion_of(text) is not None for text in answers["unrelated"]],
            "leading_suggested": [a == s for a, s in zip(led, suggested, strict=True)],
            "leading_right": [a == t for a, t in zip(led, about.truth, strict=True)],
        }
    found: Row = {name: intervals(share(values), about.units)["share"] for name, values in shares.items()}
    found["answers"] = {
        kind: {"repeated": repeated(texts, about.units), "commonest": commonest(texts)}
        for kind, texts in answers.items()
    }
    return found


def _alike(a: str, b: str, about: Labelled, main: Wording) -> bool:
    one, other = read_said([a, b], about.labels, lenient=main.own)
    return one == other if NONE not in (one, other) else plain(a) == plain(b)


def commonest(texts: Sequence[str]) -> list[Row]:
    """[{"answer", "count"}], the commonest first."""
    counts = Counter(map(plain, texts))
    return [{"answer": text, "count": count} for text, count in counts.most_common(SHOWN)]


# ---- faults


def _fault_statistics(rows: Sequence[Row], about: Labelled, main: Wording) -> Run:
    said = read_said([row["said"] for row in rows], about.labels, lenient=main.own)
    likely = probability_statistics(scores_of(rows), None, about)
    return {"uar": recall(about.truth, said), "uar_probabilities": likely["uar"]}


def fault_numbers(
    clean: Sequence[Row], faults: Mapping[str, Sequence[Row]], about: Labelled, main: Wording
) -> Row:
    """UAR of answers and of probabilities under each fault, and the difference to the clips as they are.

    Returns:
        {"clean": cells, "faults": {name: {"title", "undoes", "uar", "uar_probabilities", "change", "same"}}};
        "change" is of `paired_differences` with Holm's p over all faults, and "p_clips" of exchanging single
        clips, which is of these speakers alone; "same" the share of answers kept.
    """
    base = _fault_statistics(clean, about, main)
    found: dict[str, Row] = {}
    count = len(about.truth)
    each = Clusters(np.arange(count), count, count, 0, "clips")
    gaps: dict[tuple[str, str], Row] = {}
    for name, rows in faults.items():
        own = _fault_statistics(rows, about, main)
        change = paired_differences(base, own, about.units)
        gaps |= {(name, score): cell for score, cell in change.items()}
        for score, cell in change.items():
            cell["p_clips"] = float(exchanged(difference(base[score], own[score]), each))
        pairs = zip(clean, rows, strict=True)
        same = np.array([_alike(a["said"], b["said"], about, main) for a, b in pairs], dtype=np.float64)
        found[name] = {
            "title": FAULTS[name].title if name in FAULTS else HOP_TITLE,
            "undoes": FAULTS[name].undoes if name in FAULTS else "",
            **intervals(own, about.units),
            "change": change,
            "same": float(same.mean()),
        }
    correct(gaps)
    return {"clean": intervals(base, about.units), "faults": found}


# ---- words


def word_numbers(rows: Sequence[Row], clips: Sequence[Utterance]) -> Row:
    """Error rates of transcripts, against the clip's own words and against another clip's.

    Returns:
        "wer", "cer", "wer_other" (against the words of another clip, where they differ: what words that do
        not come from the clip would have), "gain" (wer_other - wer on those clips), "refusals", "emotions"
        (answers that name an emotion instead) with intervals; "transcribes"; "commonest" answers.
    """
    said = [str(row["said"]) for row in rows]
    told = [str(u.transcript) for u in clips]
    units = clusters_of(clips)
    errors, words = _errors(told, said)
    letters = np.array([character_errors(t, s) for t, s in zip(told, said, strict=True)], dtype=np.float64)
    statistics = {
        "wer": ratio(errors, words),
        "cer": ratio(letters[:, 0], letters[:, 1]),
        "refusals": mean(np.array([refuses(text) for text in said], dtype=np.float64)),
        "emotions": mean(np.array([_only_emotion(text) for text in said], dtype=np.float64)),
    }
    found: Row = dict(intervals(statistics, units))
    found |= {"wer_other": None, "gain": None, "repeated": repeated(said, units)}
    if others := _other_words(told):
        kept = sorted(others)
        wrong = _errors([told[others[i]] for i in kept], [said[i] for i in kept])
        right = _errors([told[i] for i in kept], [said[i] for i in kept])
        own = clusters_of([clips[i] for i in kept])
        found["wer_other"] = intervals({"wer": ratio(*wrong)}, own)["wer"]
        found["gain"] = paired_differences({"wer": ratio(*right)}, {"wer": ratio(*wrong)}, own)["wer"]
    gain = found["gain"]
    heard = gain is None or (gain["low"] is not None and gain["low"] > 0)
    rate = found["wer"]["value"]
    found["transcribes"] = bool(rate is not None and rate < TRANSCRIBES and heard)
    found["clips"] = len(said)
    found["commonest"] = commonest(said)
    return found


def _only_emotion(text: str) -> bool:
    return emotion_of(text) is not None and not refuses(text)


def _errors(told: Sequence[str], said: Sequence[str]) -> tuple[Floats, Floats]:
    pairs = np.array([word_errors(t, s) for t, s in zip(told, said, strict=True)], dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def _other_words(told: Sequence[str]) -> dict[int, int]:
    """Of each clip the next one, in a circle, with other words, where there is one."""
    words = [tuple(caption_words(text)) for text in told]
    found = {}
    for i, own in enumerate(words):
        turns = ((i + step) % len(words) for step in range(1, len(words)))
        other = next((j for j in turns if words[j] != own), None)
        if other is not None:
            found[i] = other
    return found
