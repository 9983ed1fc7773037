"""The offline judge: a caption's marks from its words, the references' emotion and the measured audio.

No model is needed; fluency is a number that the caller may bring (`aligncap.inference.fluency`). Points and
thresholds are those of data/rubric.yaml. What is unknown of a clip leaves its criterion out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from aligncap.data.manifest import Utterance
from aligncap.text.claims import (
    Checked,
    Claim,
    check,
    claims_of,
    contradictions,
    genders_of,
    relative_cues,
)
from aligncap.text.emotions import Mention, affect, emotion_of, emotion_words, labels
from aligncap.text.lexicon import inflect, is_chinese, mask_quotes, tokenise
from aligncap.utils.io import data_path, load_data

_RUN = 4  # characters of a Chinese transcript that no caption shares by chance
_RUNS = range(2, 6)  # words of a run shared with an English transcript
_APART = 3  # content words shared out of order that are no chance


def length(caption: str) -> float:
    """Words of a caption; two Chinese characters stand for one."""
    words = sum(token.text[0].isalnum() for token in tokenise(caption) if not is_chinese(token.text))
    return words + len(re.findall("[\u3400-\u9fff]", caption)) / 2


@cache
def _phrases(name: str) -> re.Pattern[str]:
    words = sorted(load_data(FILE)[name], key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)


def tells_the_unheard(caption: str) -> bool:
    """Whether a caption tells what only eyes know."""
    return _phrases("unheard").search(caption) is not None


def speaks_of_itself(caption: str) -> bool:
    """Whether a caption is an assistant's answer ("Here is a description …") and no description."""
    return _phrases("about_itself").search(caption) is not None


def quotes(caption: str) -> bool:
    """Whether a caption quotes two words or more (of Chinese, four characters)."""
    return length(caption) - length(mask_quotes(caption)) >= 2


@cache
def _describing() -> frozenset[str]:
    """Words that describe any voice, so no sign of a leak."""
    return frozenset(load_data(FILE)["small_words"]) | inflect(load_data("voice_words.yaml")["en"]["words"])


@lru_cache(maxsize=1 << 12)
def _words(text: str) -> list[str]:
    """Words in order; small words, emotion words and words for voices as "", so that content stands out."""
    feelings = [(m.start, m.start + len(m.word)) for m in emotion_words(text)]
    return [
        "" if t.text in _describing() or any(a <= t.start < b for a, b in feelings) else t.text
        for t in tokenise(text)
        if t.text[0].isalpha()
    ]


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
    said, source = _words(caption), _words(transcript)
    shared = (set(said) & set(source)) - {""}
    if len(shared) < 2:
        return False
    if len(shared) >= min(_APART, len(set(source) - {""}) / 2):
        return True
    spoken = [t.text for t in tokenise(transcript) if t.text[0].isalpha()]
    runs = {tuple(spoken[i : i + n]) for n in _RUNS for i in range(len(spoken) - n + 1)}
    told = [t.text for t in tokenise(caption) if t.text[0].isalpha()]
    return any(
        tuple(told[i : i + n]) in runs and len(set(said[i : i + n]) & shared) > 1
        for n in _RUNS
        for i in range(len(told) - n + 1)
    )


def disfluencies(caption: str) -> list[tuple[str, str]]:
    """(name of the rule, reason) of everything wrong with the language, by rules alone."""
    found: list[tuple[str, str]] = []
    words = [t.text for t in tokenise(caption) if t.text[0].isalnum()]
    if words and words[-1] in load_data(FILE)["dangling"]:
        found.append(("unfinished", "breaks off"))
    elif not caption.rstrip(" \"'”’").endswith((".", "!", "?", "。", "！", "？")):
        found.append(("no_stop", "has no full stop"))
    joined = [w for w in words if w not in ("and", "but", "or", "very", "a", "so")]  # "lively and lively"
    if any(a == b for a, b in zip(joined, joined[1:], strict=False)):
        found.append(("doubled_word", "doubles a word"))
    content = [word for word in words if word not in load_data(FILE)["small_words"]]
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(runs)) < len(runs) or any(content.count(word) > 2 for word in content):
        found.append(("repeated", "repeats itself"))
    elif len(set(content)) < len(content):
        found.append(("echo", "uses a word twice"))
    return found


FILE = "rubric.yaml"
CRITERIA = ("faithful", "emotion", "acoustics", "fluent", "specific")
TOP = 10.0
_DATA = (FILE, "claim_words.yaml", "cue_words.yaml", "emotions.yaml", "voice_words.yaml")


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
    """SHA-256 over every data file that the marks depend on."""
    digest = hashlib.sha256()
    for name in _DATA:
        digest.update(data_path(name).read_bytes())
    return digest.hexdigest()


def evidence_of(
    utterance: Utterance,
    relative: Mapping[str, float],
    known: frozenset[str] = frozenset(),
    references: Sequence[str] | None = None,
) -> Evidence:
    """Evidence about one clip; `references` instead of the utterance's own captions."""
    captions = utterance.captions if references is None else references
    said = [label for label in map(emotion_of, captions) if label]
    return Evidence(
        utterance.emotion,
        {label: said.count(label) / len(captions) for label in said},
        relative,
        utterance.gender,
        utterance.transcript,
        known,
    )


def evidence(utterances: Sequence[Utterance]) -> list[Evidence]:
    """Evidence about every clip of a set: cues against each speaker's norm in it, labels that occur in it."""
    known = frozenset(u.emotion for u in utterances if u.emotion)
    return [
        evidence_of(u, cues, known) for u, cues in zip(utterances, relative_cues(utterances), strict=True)
    ]


def score(caption: str, evidence: Evidence, fluency: float | None = None) -> Marks:
    """Marks of a caption.

    Args:
        caption: an empty one gets 0 everywhere.
        evidence: what is known of the clip.
        fluency: mean log-probability (nats) of the caption's tokens under a language model, if one was asked.
    """
    if not tokenise(mask_quotes(caption)) and not is_chinese(caption):
        return Marks({name: 0.0 for name in CRITERIA}, 0.0, "says nothing")
    claims = claims_of(caption)
    genders = genders_of(caption)
    checked = check(claims, evidence.relative)
    conflicts = contradictions(claims)
    heard = bool(evidence.relative) and not is_chinese(caption)  # claims are read in English alone
    wrong_gender = evidence.gender is not None and bool(genders - {evidence.gender})
    emotion, feeling = _emotion(caption, evidence)
    parts: dict[str, tuple[float | None, list[str]]] = {
        "faithful": _faithful(caption, evidence, bool(claims), genders, wrong_gender, conflicts),
        "emotion": (emotion, feeling),
        "acoustics": _acoustics(checked, conflicts) if heard else (None, []),
        "fluent": _fluent(caption, fluency),
        "specific": (_specific(caption, emotion, genders, wrong_gender, checked, conflicts), []),
    }
    scores = {
        name: round(min(TOP, max(0.0, points)), 2)
        for name, (points, _) in parts.items()
        if points is not None
    }
    weights = load_data(FILE)["weights"]
    total = sum(weights[name] for name in scores)
    overall = sum(weights[name] * mark for name, mark in scores.items()) / total
    overall *= 1 - load_data(FILE)["drag"] * (1 - scores["fluent"] / TOP)
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
    best = 0.0
    for truth in truths:
        if truth in labels():
            distance = math.dist(affect(label), affect(truth))
            best = max(best, rules["near"] * (1 - distance / rules["far"]))
    if label in evidence.known:
        best *= rules["rival"]
    return max(best, TOP * evidence.named.get(label, 0.0))


@cache
def _weak() -> frozenset[str]:
    words = load_data("voice_words.yaml")
    return frozenset((*words["en"]["weak"], *words["zh"]["weak"]))


def emotions_said(mentions: Sequence[Mention]) -> dict[str, bool]:
    """Labels that mentions assert, each with whether all of its mentions are weakened."""
    said: dict[str, bool] = {}
    for m in mentions:
        if not m.negated:
            said[m.label] = said.get(m.label, True) and m.degree in _weak()
    return said


def _emotion(caption: str, evidence: Evidence) -> tuple[float | None, list[str]]:
    if agreement("neutral", evidence) is None:
        return None, []
    mentions = emotion_words(caption)
    said = emotions_said(mentions)
    truth = evidence.emotion or ", ".join(sorted(evidence.named))
    denied = {m.label for m in mentions if m.negated and agreement(m.label, evidence) == TOP}
    if denied:
        return 0.0, [f"denies that the speaker is {truth}"]
    if not said:
        return load_data(FILE)["emotion"]["none"], [f"names no emotion, where it is {truth}"]
    firm = not all(said.values())
    points: dict[str, float] = {}
    for label, weak in said.items():
        fit = agreement(label, evidence) or 0.0
        points[label] = (fit + TOP) / 2 if weak and firm else fit
    worst = min(points, key=lambda label: points[label])
    if points[worst] == TOP:
        return TOP, []
    return points[worst], [f"says {worst}, where it is {truth}"]


def _by_dimension(checked: Checked, conflicts: Sequence[str]) -> dict[str, tuple[str, Claim]]:
    """One verdict a dimension: contradicted, wrong, or the kind of its most telling claim that is right."""
    found: dict[str, tuple[str, Claim]] = {}
    order = ("denied", "near", "away")
    for claim in checked.right:
        kind = "denied" if claim.negated else "away" if claim.rank else "near"
        if claim.dimension not in found or order.index(kind) > order.index(found[claim.dimension][0]):
            found[claim.dimension] = kind, claim
    found |= {claim.dimension: ("wrong", claim) for claim in checked.wrong}
    every = (*checked.right, *checked.wrong)
    return found | {c.dimension: ("contradicted", c) for c in every if c.dimension in conflicts}


def _acoustics(checked: Checked, conflicts: Sequence[str]) -> tuple[float | None, list[str]]:
    rules = load_data(FILE)["acoustics"]
    found = _by_dimension(checked, conflicts)
    reasons = [f"{claim} is not what was measured" for kind, claim in found.values() if kind == "wrong"]
    if not found and checked.unknown:
        return None, []
    if not found:
        reasons = ["says nothing of how the voice sounds"]
    gains = sum(rules[kind] for kind, _ in found.values() if rules[kind] > 0)
    costs = sum(rules[kind] for kind, _ in found.values() if rules[kind] < 0)
    # earnings stop at the top before costs come off: more right claims never buy a wrong one
    return _eased(min(TOP, rules["start"] + gains) + costs, rules["soft"]), reasons


def _eased(points: float, soft: float) -> float:
    """Points below `soft` fall off towards 0 instead of stopping there: a second error still costs."""
    return points if points >= soft else soft * math.exp(points / soft - 1)


def _specific(
    caption: str,
    emotion: float | None,
    genders: frozenset[str],
    wrong_gender: bool,
    checked: Checked,
    conflicts: Sequence[str],
) -> float:
    rules = load_data(FILE)["specific"]
    points = 0.0
    if emotions_said(emotion_words(caption)) and (emotion is None or emotion >= TOP / 2):
        points += rules["emotion"]
    if len(genders) == 1 and not wrong_gender:
        points += rules["gender"]
    found = _by_dimension(Checked((*checked.right, *checked.unknown), checked.wrong), conflicts)
    points += sum(rules[kind] for kind, _ in found.values())
    return TOP * points / rules["enough"]


def _faithful(
    caption: str,
    evidence: Evidence,
    claims: bool,
    genders: frozenset[str],
    wrong_gender: bool,
    conflicts: Sequence[str],
) -> tuple[float | None, list[str]]:
    rules = load_data(FILE)["faithful"]
    costs: list[tuple[float, str]] = []
    if wrong_gender:
        costs.append((rules["wrong_gender"], f"the speaker is {evidence.gender}"))
    elif len(genders) > 1:
        costs.append((rules["two_genders"], "calls the speaker he and she"))
    costs += [(rules["contradiction"], f"contradicts itself about {name}") for name in conflicts]
    if leaks(caption, evidence.transcript):
        costs.append((rules["leak"], "repeats what was said"))
    if quotes(caption):
        costs.append((rules["quote"], "quotes speech"))
    if tells_the_unheard(caption):
        costs.append((rules["unheard"], "tells what cannot be heard"))
    if speaks_of_itself(caption):
        costs.append((rules["about_itself"], "is an answer, no description"))
    if not (claims or emotion_words(caption) or genders):
        costs.append((rules["nothing_said"], "does not say how the speaker sounds"))
    words = length(caption)
    if words < rules["least"]:
        costs.append((rules["per_word"] * (rules["least"] - words), "too short"))
    if words > rules["most"]:
        costs.append((rules["per_word"] * (words - rules["most"]), "too long"))
    return TOP - sum(cost for cost, _ in costs), [reason for _, reason in costs]


def _fluent(caption: str, fluency: float | None) -> tuple[float | None, list[str]]:
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
