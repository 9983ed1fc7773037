"""The offline judge: a caption's marks from its words, the references' emotion and the measured audio.

No model is needed; fluency is a number that the caller may bring (`aligncap.inference.fluency`). Points and
thresholds are those of `data/rubric.yaml`. What is unknown of a clip leaves its criterion out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from aligncap.data.manifest import Utterance
from aligncap.text.claims import Claim, check, claims_of, conflicts, genders_of, relative_cues
from aligncap.text.coherence import contradictions, repetitions
from aligncap.text.emotions import Mention, affect, emotion_of, emotion_words, labels
from aligncap.text.lexicon import is_chinese, mask_quotes, phrase_pattern, tokenise, voice_words, word_list
from aligncap.utils.io import load_data

FILE = "rubric.yaml"
CRITERIA = ("faithful", "emotion", "acoustics", "fluent", "specific")
TOP = 10.0
_DATA = (
    *(FILE, "claim_words.yaml", "coherence.yaml", "cue_words.yaml", "cue_words_zh.yaml"),
    *("emotions.yaml", "voice_words.yaml"),
)
_RUN = 4  # characters of a Chinese transcript that no caption shares by chance
_RUNS = range(2, 6)  # words of a run shared with an English transcript
_APART = 3  # content words shared out of order that are no chance


def length(caption: str) -> float:
    """Words of a caption where two Chinese characters are one, so that one limit serves both languages."""
    words = sum(token.text[0].isalnum() for token in tokenise(caption) if not is_chinese(token.text))
    return words + sum(map(is_chinese, caption)) / 2


def tells_the_unheard(caption: str) -> bool:
    """Whether a caption tells what only eyes know."""
    return phrase_pattern(FILE, "unheard").search(caption) is not None


def quotes(caption: str) -> bool:
    """Whether a caption quotes two words or more (of Chinese, four characters)."""
    return length(caption) - length(mask_quotes(caption)) >= 2


@lru_cache(maxsize=1 << 12)
def _content_words(text: str) -> tuple[list[str], list[str]]:
    """Words in order; and the same with "" for those that describe any voice or feeling: no leaks."""
    small, describing = word_list(FILE, "small_words"), voice_words()
    feelings = [range(m.start, m.start + len(m.word)) for m in emotion_words(text)]
    words = [t for t in tokenise(text) if t.text[0].isalpha()]
    plain = [t.text in small or t.text in describing or any(t.start in f for f in feelings) for t in words]
    return [t.text for t in words], ["" if p else t.text for t, p in zip(words, plain, strict=True)]


@lru_cache(maxsize=1 << 16)
def leaks(caption: str, transcript: str | None) -> bool:
    """Whether a caption tells what was said in the clip.

    It does where it shares two content words with the transcript that stand in one run of words, or that
    are half of the transcript's content, or three anywhere. Words that describe any voice are no content. A
    Chinese caption leaks where it shares four characters in a row.
    """
    if not transcript:
        return False
    if is_chinese(transcript):
        plain = re.sub(r"\W", "", transcript)
        return any(plain[i : i + _RUN] in caption for i in range(len(plain) - _RUN + 1))
    (told, content), (spoken, source) = _content_words(caption), _content_words(transcript)
    shared = (set(content) & set(source)) - {""}
    if len(shared) < 2:
        return False
    if len(shared) >= min(_APART, len(set(source) - {""}) / 2):
        return True
    runs = {tuple(spoken[i : i + n]) for n in _RUNS for i in range(len(spoken) - n + 1)}
    return any(
        tuple(told[i : i + n]) in runs and len(set(content[i : i + n]) & shared) > 1
        for n in _RUNS
        for i in range(len(told) - n + 1)
    )


def disfluencies(caption: str) -> list[tuple[str, str]]:
    """(name of the rule, reason) of everything wrong with the language, by rules alone."""
    found: list[tuple[str, str]] = []
    words = [t.text for t in tokenise(caption) if t.text[0].isalnum()]
    if words and words[-1] in word_list(FILE, "dangling"):
        found.append(("unfinished", "breaks off"))
    elif not caption.rstrip(" \"'”’").endswith((".", "!", "?", "。", "！", "？")):
        found.append(("no_stop", "has no full stop"))
    joined = [w for w in words if w not in ("and", "but", "or", "very", "a", "so")]  # "lively and lively"
    if any(a == b for a, b in zip(joined, joined[1:], strict=False)):
        found.append(("doubled_word", "doubles a word"))
    content = [word for word in words if word not in word_list(FILE, "small_words")]
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(runs)) < len(runs) or any(content.count(word) > 2 for word in content):
        found.append(("repeated", "repeats itself"))
    elif len(set(content)) < len(content):
        found.append(("echo", "uses a word twice"))
    if not {"doubled_word", "repeated"} & dict(found).keys() and (twice := repetitions(caption)):
        found.append(("twice", f"says one thing twice ({twice[0]})"))
    return found


@dataclass(frozen=True)
class Evidence:
    """What is known of a clip.

    `named` are the labels that its reference captions name, each with the share of references; `relative`
    are its relative cues (`claims.relative_cues`), empty where not measured; `known` are the labels that the
    corpus tells apart.
    """

    emotion: str | None = None
    named: Mapping[str, float] = field(default_factory=dict)
    relative: Mapping[str, float] = field(default_factory=dict)
    gender: str | None = None
    transcript: str | None = None
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Marks:
    """Scores 0 to 10 by criterion, their weighted mean less what broken language costs, and why in words."""

    scores: Mapping[str, float]
    overall: float
    reason: str


def version() -> str:
    """Version of the rubric's points and rules."""
    return str(load_data(FILE)["version"])


@cache
def data_hash() -> str:
    """SHA-256 over the content of every data file that the marks depend on, comments left out."""
    content = [load_data(name) for name in _DATA]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def evidence_of(
    utterance: Utterance,
    relative: Mapping[str, float],
    known: frozenset[str] = frozenset(),
    references: Sequence[str] | None = None,
) -> Evidence:
    """Evidence about one clip; `references` instead of the utterance's own captions."""
    captions = utterance.captions if references is None else references
    said = [label for label in map(emotion_of, captions) if label]
    named = {label: said.count(label) / len(captions) for label in said}
    return Evidence(utterance.emotion, named, relative, utterance.gender, utterance.transcript, known)


def evidence(utterances: Sequence[Utterance]) -> list[Evidence]:
    """Evidence about every clip of a set: cues against each speaker's norm in it, labels that occur in it."""
    known = frozenset(u.emotion for u in utterances if u.emotion)
    cues = relative_cues(utterances)
    return [evidence_of(u, relative, known) for u, relative in zip(utterances, cues, strict=True)]


_Points = tuple[float | None, list[str]]  # None: the criterion cannot be judged; and reasons in words


def score(caption: str, evidence: Evidence, fluency: float | None = None) -> Marks:
    """Marks of a caption.

    Args:
        caption: an empty one gets 0 everywhere.
        evidence: what is known of the clip.
        fluency: mean log-probability (nats) of the caption's tokens under a language model, if one was asked.
    """
    if not tokenise(mask_quotes(caption)) and not is_chinese(caption):
        return Marks({name: 0.0 for name in CRITERIA}, 0.0, "says nothing")
    rules, words = load_data(FILE), length(caption)
    mentions, claims, genders = emotion_words(caption), claims_of(caption), genders_of(caption)
    wrong_gender = evidence.gender is not None and bool(genders - {evidence.gender})
    checked, at_odds = check(claims, evidence.relative), conflicts(claims)
    feelings = [found for found in contradictions(caption) if found.kind == "emotion"][:1]
    cost, itself = rules["faithful"], phrase_pattern(FILE, "about_itself").search(caption)
    faults = [
        (wrong_gender, cost["wrong_gender"], f"the speaker is {evidence.gender}"),
        (len(genders) > 1 and not wrong_gender, cost["two_genders"], "calls the speaker he and she"),
        *((True, cost["contradiction"], f"contradicts itself about {name}") for name in at_odds),
        *((True, cost["contradiction"], f"contradicts itself about {f}") for f in feelings),
        (leaks(caption, evidence.transcript), cost["leak"], "repeats what was said"),
        (quotes(caption), cost["quote"], "quotes speech"),
        (tells_the_unheard(caption), cost["unheard"], "tells what cannot be heard"),
        (itself is not None, cost["about_itself"], "is an answer, no description"),
        (not (claims or mentions or genders), cost["nothing_said"], "does not say how the speaker sounds"),
        (words < cost["least"], cost["per_word"] * (cost["least"] - words), "too short"),
        (words > cost["most"], cost["per_word"] * (words - cost["most"]), "too long"),
    ]
    emotion = _emotion(mentions, evidence)
    acoustics: _Points = (None, [])
    if evidence.relative:
        acoustics = _acoustics(_by_dimension(checked.right, checked.wrong, at_odds), bool(checked.unknown))
    gain = rules["specific"]
    named = bool(emotions_said(mentions)) and (emotion[0] is None or emotion[0] >= TOP / 2)
    specific = named * gain["emotion"] + (len(genders) == 1 and not wrong_gender) * gain["gender"]
    told = _by_dimension((*checked.right, *checked.unknown), checked.wrong, at_odds)
    specific += sum(gain[kind] for kind, _ in told.values())
    parts: dict[str, _Points] = {
        "faithful": (TOP - sum(c for holds, c, _ in faults if holds), [r for holds, _, r in faults if holds]),
        "emotion": emotion,
        "acoustics": acoustics,
        "fluent": _fluent(caption, fluency),
        "specific": (TOP * specific / gain["enough"], []),
    }
    scores = {n: round(min(TOP, max(0.0, p)), 2) for n, (p, _) in parts.items() if p is not None}
    weights = rules["weights"]
    overall = sum(weights[name] * mark for name, mark in scores.items())
    overall /= sum(weights[name] for name in scores)
    overall *= 1 - rules["drag"] * (1 - scores["fluent"] / TOP)
    reasons = [reason for _, reasons in parts.values() for reason in reasons]
    return Marks(scores, round(overall, 3), "; ".join(reasons) or "nothing to object to")


def agreement(label: str, evidence: Evidence) -> float | None:
    """How well a label fits the clip's emotion, 0 to 10; None when the clip's is not known."""
    rules = load_data(FILE)["emotion"]
    truths = [evidence.emotion] if evidence.emotion else [k for k, v in evidence.named.items() if v >= 0.5]
    truths = truths or list(evidence.named)
    if not truths:
        return None
    if label in truths or evidence.named.get(label, 0.0) >= 0.5:
        return TOP
    distances = [math.dist(affect(label), affect(truth)) for truth in truths if truth in labels()]
    best = max((rules["near"] * (1 - d / rules["far"]) for d in distances), default=0.0)
    best = max(0.0, best) * (rules["rival"] if label in evidence.known else 1)
    return max(best, TOP * evidence.named.get(label, 0.0))


def emotions_said(mentions: Sequence[Mention]) -> dict[str, bool]:
    """Labels that mentions assert, each with whether all of its mentions are weakened."""
    said: dict[str, bool] = {}
    for m in mentions:
        if not m.negated:
            said[m.label] = said.get(m.label, True) and m.weak
    return said


def _emotion(mentions: Sequence[Mention], evidence: Evidence) -> _Points:
    if agreement("neutral", evidence) is None:
        return None, []
    said = emotions_said(mentions)
    truth = evidence.emotion or ", ".join(sorted(evidence.named))
    if any(m.negated and agreement(m.label, evidence) == TOP for m in mentions):
        return 0.0, [f"denies that the speaker is {truth}"]
    if not said:
        return load_data(FILE)["emotion"]["none"], [f"names no emotion, where it is {truth}"]
    firm = not all(said.values())
    fits = {label: agreement(label, evidence) or 0.0 for label in said}
    points = {label: (fit + TOP) / 2 if said[label] and firm else fit for label, fit in fits.items()}
    worst = min(points, key=lambda label: points[label])
    return points[worst], [f"says {worst}, where it is {truth}"] if points[worst] < TOP else []


def _by_dimension(
    right: Sequence[Claim], wrong: Sequence[Claim], conflicts: Sequence[str]
) -> dict[str, tuple[str, Claim]]:
    """One verdict a dimension: contradicted, wrong, or the kind of its most telling claim that is right."""
    found: dict[str, tuple[str, Claim]] = {}
    order = ("denied", "near", "away")
    for claim in right:
        kind = "denied" if claim.negated else "away" if claim.claimed.rank else "near"
        if claim.dimension not in found or order.index(kind) > order.index(found[claim.dimension][0]):
            found[claim.dimension] = kind, claim
    found |= {claim.dimension: ("wrong", claim) for claim in wrong}
    return found | {c.dimension: ("contradicted", c) for c in (*right, *wrong) if c.dimension in conflicts}


def _acoustics(found: Mapping[str, tuple[str, Claim]], unknown: bool) -> _Points:
    """Points of verdicts by dimension; `unknown`: there are claims of what was not measured."""
    if not found and unknown:
        return None, []
    rules = load_data(FILE)["acoustics"]
    reasons = [f"{claim} is not what was measured" for kind, claim in found.values() if kind == "wrong"]
    points = [rules[kind] for kind, _ in found.values()]
    # earnings stop at the top before costs come off: more right claims never buy a wrong one
    total = min(TOP, rules["start"] + sum(p for p in points if p > 0)) + sum(p for p in points if p < 0)
    # below `soft` points fall off towards 0 instead of stopping there: a second error still costs
    total = total if total >= rules["soft"] else rules["soft"] * math.exp(total / rules["soft"] - 1)
    return total, reasons if found else ["says nothing of how the voice sounds"]


def _fluent(caption: str, fluency: float | None) -> _Points:
    rules = load_data(FILE)["fluent"]
    points, reasons = TOP, []
    if fluency is not None:
        points = TOP * min(1.0, max(0.0, (fluency - rules["low"]) / (rules["high"] - rules["low"])))
        if points < 0.8 * TOP:
            reasons.append("reads oddly")
    for name, reason in disfluencies(caption):
        points -= rules[name]
        reasons.append(reason)
    return points, reasons
