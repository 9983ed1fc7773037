"""What a caption claims about the voice and the speaker, and whether the measured audio bears it out.

Claims are read by rules from the words of data/cue_words.yaml and data/claim_words.yaml: no parser, some 200
microseconds a caption, always in the same way. English captions only; a Chinese caption claims nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from aligncap.audio.cues import relative
from aligncap.data.manifest import Utterance
from aligncap.text.emotions import emotion_words, words_of
from aligncap.text.emotions import labels as emotion_labels
from aligncap.text.lexicon import (
    Hit,
    Phrases,
    Token,
    adjective_forms,
    is_chinese,
    mask_quotes,
    noun_forms,
    scan_english,
    tokenise,
    verb_forms,
)
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import data_path, load_data

FILE = "cue_words.yaml"
FORMS = ("voice", "quality", "adverb", "phrase", "also")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a dimension and the words that say it, by grammatical form.

    `rank` is -1, 0 or 1: below, near or above the norm.
    """

    name: str
    rank: int
    voice: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    adverb: tuple[str, ...] = ()
    phrase: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def words(self) -> frozenset[str]:
        """Every word and phrase that claims this level."""
        return frozenset((*self.voice, *self.quality, *self.adverb, *self.phrase, *self.also))


@dataclass(frozen=True, slots=True)
class Dimension:
    """A relative cue, its two bounds and its three levels, lowest first."""

    name: str
    cue: str
    title: str
    below: float
    above: float
    levels: tuple[Level, ...]

    def level_of(self, value: float) -> Level:
        """The level of a relative value; a value on a bound is near the norm."""
        return self.levels[0 if value < self.below else 2 if value > self.above else 1]

    def level(self, name: str) -> Level | None:
        """The level of that name, None when the wording file no longer has it."""
        return next((level for level in self.levels if level.name == name), None)


@dataclass(frozen=True, slots=True)
class MannerMention:
    """A word or phrase of a caption that claims a level of a dimension."""

    word: str
    dimension: str
    level: str
    start: int


@cache
def dimensions() -> dict[str, Dimension]:
    """Dimensions by name, in the order of the file.

    Raises:
        UserErrors: the file lacks three levels or sound bounds, or one word stands for two levels.
    """
    found: dict[str, Dimension] = {}
    errors: list[str] = []
    owner: dict[str, str] = {}
    for name, entry in load_data(FILE).items():
        levels = entry["levels"]
        if len(levels) != 3 or not entry["below"] < entry["above"]:
            errors.append(f"{data_path(FILE)}: {name} needs three levels and below < above")
            continue
        made = [
            Level(str(key), rank, **{form: tuple((words or {}).get(form) or ()) for form in FORMS})
            for rank, (key, words) in zip((-1, 0, 1), levels.items(), strict=True)
        ]
        for level in made:
            for word in level.words:
                first = owner.setdefault(word, f"{name} {level.name}")
                if first != f"{name} {level.name}":
                    errors.append(
                        f"{data_path(FILE)}: {word!r} stands for {first} and {name} {level.name}; keep one"
                    )
        found[name] = Dimension(
            name, entry["cue"], entry["title"], float(entry["below"]), float(entry["above"]), tuple(made)
        )
    if errors:
        raise UserErrors(errors)
    return found


def word_cues(relative: Mapping[str, float]) -> dict[str, str]:
    """Level names by dimension of one clip's relative cues; a cue that was not measured has no word.

    >>> word_cues({"f0_median_hz": 1.9, "rate_sps": 0.1})
    {'pitch': 'high', 'rate': 'medium'}
    """
    return {
        dimension.name: dimension.level_of(relative[dimension.cue]).name
        for dimension in dimensions().values()
        if dimension.cue in relative
    }


@cache
def _pattern() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    owner = {
        word: (dimension.name, level.name)
        for dimension in dimensions().values()
        for level in dimension.levels
        for word in level.words
    }
    longest_first = sorted(owner, key=lambda word: (-len(word), word))
    alternatives = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])", re.IGNORECASE), owner


def manner_mentions(caption: str) -> list[MannerMention]:
    """Manner words and phrases of a caption in order, each with the level it claims; longest match first."""
    pattern, owner = _pattern()
    return [
        MannerMention(match.group().lower(), *owner[match.group().lower()], match.start())
        for match in pattern.finditer(caption)
    ]


def manner_claims(captions: Iterable[str]) -> set[tuple[str, str]]:
    """(dimension, level) pairs that captions claim."""
    return {(m.dimension, m.level) for caption in captions for m in manner_mentions(caption)}


WORDS_FILE = "claim_words.yaml"
# (dimension, level) by where a word stands: the noun it is said of, "sounds", "adverb" or "anywhere"
Reading = dict[str, tuple[str, str]]


@cache
def ranks() -> dict[tuple[str, str], int]:
    """-1, 0 or 1 of every (dimension, level): below, near or above the norm."""
    return {(d.name, level.name): level.rank for d in dimensions().values() for level in d.levels}


@cache
def listed(*keys: str) -> frozenset[str]:
    """Words of a list of data/claim_words.yaml, found by its keys."""
    found: Any = load_data(WORDS_FILE)
    for key in keys:
        found = found[key]
    return frozenset(found)


@cache
def readings() -> Phrases[Reading]:
    """Every word and phrase with the levels it claims, by the noun it is said of.

    Raises:
        UserErrors: the file names an unknown dimension, level or place, or a word has two levels at one place.
    """
    found: dict[str, Reading] = {}
    errors: list[str] = []
    instead = listed("instead")

    def add(word: str, place: str, claim: tuple[str, str]) -> None:
        first = found.setdefault(word, {}).setdefault(place, claim)
        if first != claim:
            errors.append(
                f"{data_path(WORDS_FILE)}: {word!r} ({place}) stands for {first} and {claim}; keep one"
            )

    for d in dimensions().values():
        for level in d.levels:
            claim = (d.name, level.name)
            for word in level.words - instead:
                if word in level.adverb or (word.endswith("ly") and word not in level.voice + level.quality):
                    add(word, "adverb", claim)
                else:
                    add(word, "anywhere" if " " in word else "voice", claim)
    places = {*load_data(WORDS_FILE)["nouns"], "sounds", "anywhere", "adverb"}
    for name, levels in load_data(WORDS_FILE)["words"].items():
        for level_name, by_place in levels.items():
            if (name, level_name) not in ranks() or set(by_place) - places:
                errors.append(
                    f"{data_path(WORDS_FILE)}: {name} {level_name}: unknown dimension, level or place"
                )
                continue
            for place, words in by_place.items():
                for word in words:
                    graded = place not in ("anywhere", "adverb") and " " not in word and "-" not in word
                    forms = {f for f in adjective_forms(word) if f.endswith(("er", "est"))} if graded else ()
                    for form in (word, *forms):
                        add(form, place, (name, level_name))
    if errors:
        raise UserErrors(errors)
    # an idiom is found, so that no word in it is, and claims nothing
    found |= {idiom: {} for idiom in listed("idioms")}
    table: Phrases[Reading] = Phrases()
    for word, reading in found.items():
        table.add(word, reading)
    return table


@cache
def nouns() -> Phrases[str]:
    """Nouns with their class: voice, pitch, range, volume, rate, intonation or person."""
    table: Phrases[str] = Phrases()
    for place, words in load_data(WORDS_FILE)["nouns"].items():
        for word in words:
            table.add(word, place)
    return table


@cache
def emotion_nouns() -> frozenset[str]:
    """Nouns that name an emotion: "a quiet sadness" says nothing of the voice."""
    words = {word for label in emotion_labels() for word in words_of(label, kinds=["noun"])}
    return frozenset(form for word in words for form in noun_forms(word))


@cache
def passed_over() -> frozenset[str]:
    """Words that may stand between a voice and what is said of it: "is", "very", "not", "harsh and"."""
    words = load_data("voice_words.yaml")["en"]
    phrases = (*words["words"]["adjective"], *words["ambiguous"], *words["degree"], *words["negators"])
    return listed("links") | {phrase for phrase in phrases if " " not in phrase}


@cache
def speech_verbs() -> frozenset[str]:
    """Forms of verbs of speaking."""
    forms = frozenset(form for verb in listed("speech_verbs") for form in verb_forms(verb))
    return (forms | listed("speech_irregular")) - {"voice", "voices", "whisper", "cry", "cries"}


@cache
def gender_words() -> Phrases[str]:
    """Words that tell a gender, with it; "" for phrases that leave it open ("he or she")."""
    table: Phrases[str] = Phrases()
    for gender in ("male", "female"):
        for word in load_data(WORDS_FILE)["gender"][gender]:
            table.add(word, gender)
    for phrase in load_data(WORDS_FILE)["gender"]["of_him"]:
        table.add(phrase, "male")
    for phrase in load_data(WORDS_FILE)["gender"]["either"]:
        table.add(phrase, "")
    return table


SLACK = 0.25  # units of a relative cue by which a claim may miss the bound of its level
Gender = Literal["female", "male"]
_REACH = 6  # tokens between an adjective and the noun it is said of


@dataclass(frozen=True, slots=True)
class Claim:
    """One acoustic claim of a caption; `negated` turns it round ("not loud"), `start` is its offset."""

    dimension: str
    level: str
    negated: bool
    word: str
    start: int

    @property
    def rank(self) -> int:
        """-1, 0 or 1: the level is below, near or above the norm."""
        return ranks()[self.dimension, self.level]

    @property
    def key(self) -> tuple[str, str, bool]:
        """What is claimed, whatever the word."""
        return self.dimension, self.level, self.negated

    def __str__(self) -> str:
        return f"{self.dimension} {'not ' if self.negated else ''}{self.level}"


@dataclass(frozen=True, slots=True)
class Checked:
    """Claims of a caption held against the measured audio, each kind of claim once, in order of the text."""

    right: tuple[Claim, ...] = ()
    wrong: tuple[Claim, ...] = ()
    unknown: tuple[Claim, ...] = ()


def _after(tokens: Sequence[Token], i: int) -> str | None:
    """The noun class that an adjective before token i is said of, "" when it is said of another thing."""
    table, joined = nouns(), False
    for k in range(i, min(i + _REACH, len(tokens))):
        word = tokens[k].text
        found = table.match(tokens, k)
        if found:
            if joined:  # "his voice is high, pace fast"
                return None
            following = table.match(tokens, k + found[0]) if k + found[0] < len(tokens) else None
            return following[1] if following else found[1]
        if word in listed("other_nouns") or word in emotion_nouns():
            return None if joined else ""
        joined = word in (",", "and", "but", "or", "yet", "&")
        if word in listed("stops") or (not word[0].isalpha() and not joined):
            return None
    return None


def _before(tokens: Sequence[Token], i: int, passed: frozenset[int]) -> str | None:
    """What a predicate at token i is said of: a noun class; "sounds" of a person, speaking or nothing."""
    k = i - 1
    while k >= 0:
        word = tokens[k].text
        if word in (":", "–", "—", "-", "it"):
            titled = nouns().match(tokens, k - 1) if k and word == ":" else None
            if titled:  # "Pitch: low."
                return titled[1]
            clause = _clause(tokens, max(0, k - 1))
            return "voice" if any(t.text in listed("nouns", "voice") for t in clause) else "sounds"
        for length in (3, 2, 1):
            found = nouns().match(tokens, k - length + 1) if k - length + 1 >= 0 else None
            if found and found[0] == length:
                return "sounds" if found[1] == "person" else found[1]
        if word in listed("persons") or word in speech_verbs():
            return "sounds"
        if not (
            k in passed or word == "," or word in passed_over() or (word.endswith("ly") and word != "only")
        ):
            return _subject(_clause(tokens, k)) if tokens[k + 1].text in listed("copulas") else None
        k -= 1
    return "sounds"


def _subject(clause: Sequence[Token]) -> str | None:
    """The voice that a clause begins with: "the voice of the man in this recording"; None of other things."""
    for k, token in enumerate(clause):
        found = nouns().match(clause, k)
        if token.text in listed("other_nouns") or token.text in listed("copulas"):
            return None
        if found and found[1] != "person":
            return found[1]
    return None


def _clause(tokens: Sequence[Token], i: int) -> Sequence[Token]:
    """The tokens around i that no full stop, semicolon, colon or dash parts from it."""
    marks = (".", ";", ":", "!", "?", "–", "—")
    first = max((k + 1 for k in range(i) if tokens[k].text in marks), default=0)
    last = min((k for k in range(i, len(tokens)) if tokens[k].text in marks), default=len(tokens))
    return tokens[first : max(last, i)]


def _adverb_counts(tokens: Sequence[Token], hit: Hit[Reading], end: int, emotional: frozenset[int]) -> bool:
    """Whether an adverb is about speaking: not "quietly furious", "quickly becoming angry"."""
    after = tokens[end].text if end < len(tokens) else ""
    if end in emotional or after in listed("changes") or after in listed("other_nouns"):
        return False
    clause = _clause(tokens, hit.token)
    return any(t.text in speech_verbs() or t.text in listed("nouns", "voice") for t in clause) or not any(
        t.text in listed("persons") for t in clause
    )


def claims_of(caption: str) -> list[Claim]:
    """Acoustic claims of a caption in order, without quotes, emotion phrases and other things' qualities.

    >>> [str(c) for c in claims_of("Not loud, in high spirits, she speaks quickly in a low, tender voice.")]
    ['effort not forceful', 'rate fast', 'pitch low']
    """
    text = mask_quotes(caption)
    if is_chinese(text):
        return []
    tokens = tokenise(text)
    hits = scan_english(text, readings())
    feelings = [(m.start, m.start + len(m.word)) for m in emotion_words(caption)]
    emotional = frozenset(k for k, t in enumerate(tokens) if any(a <= t.start < b for a, b in feelings))
    spans = {h.token: sum(h.start <= t.start < h.end for t in tokens) for h in hits}
    passed = emotional | {k for first, length in spans.items() for k in range(first, first + length)}
    found = []
    for hit in hits:
        end = hit.token + spans[hit.token]
        if emotional & set(range(hit.token, end)):
            continue
        claim = _reading(tokens, hit, end, emotional, passed)
        if claim:
            # "less loud" is said of a change, "not less loud" is beyond rules: neither claims a level
            if hit.degree.endswith("less"):
                continue
            found.append(Claim(*claim, bool(hit.negated), hit.word, hit.start))
    return found


def _reading(
    tokens: Sequence[Token], hit: Hit[Reading], end: int, emotional: frozenset[int], passed: frozenset[int]
) -> tuple[str, str] | None:
    """The (dimension, level) that a hit claims where it stands, if any."""
    found = hit.value
    if "anywhere" in found:
        return found["anywhere"]
    if found.keys() - {"adverb"}:
        noun = _after(tokens, end)
        if noun == "":
            return None
        if noun in found:
            return found[str(noun)]
        if noun in ("pitch", "intonation") and found.get("voice", ("",))[0] in ("effort", "rate"):
            return found["voice"]  # "a slow, low register"
        # "deep calm" grades the feeling, as no predicate stands right before an emotion word
        said_of = None if end in emotional else _before(tokens, hit.token, passed)
        if noun in (None, "person") and said_of in found:
            return found[str(said_of)]
    if "adverb" in found and _adverb_counts(tokens, hit, end, emotional):
        return found["adverb"]
    return None


def relative_cues(utterances: Sequence[Utterance]) -> list[dict[str, float]]:
    """Cues of each clip against its speaker's norm (`norms.relative`); empty where none was measured."""
    return relative(
        [u.cues for u in utterances], [u.speaker for u in utterances], [u.gender for u in utterances]
    )


def is_true(claim: Claim, cues: Mapping[str, float]) -> bool | None:
    """Whether relative cues bear a claim out, None when its cue was not measured.

    A claimed level holds up to SLACK beyond its bounds; a denied one is wrong only where the value lies
    inside the level by more than SLACK.
    """
    dimension = dimensions()[claim.dimension]
    value = cues.get(dimension.cue)
    if value is None:
        return None
    return (
        not _inside(dimension, claim.rank, value, -SLACK)
        if claim.negated
        else _inside(dimension, claim.rank, value, SLACK)
    )


def _inside(dimension: Dimension, rank: int, value: float, slack: float) -> bool:
    """Whether the value lies in the level of that rank, widened by slack (narrowed where it is negative)."""
    low = -float("inf") if rank < 0 else dimension.below if rank == 0 else dimension.above
    high = float("inf") if rank > 0 else dimension.above if rank == 0 else dimension.below
    return low - slack <= value <= high + slack


def check(claims: Iterable[Claim], cues: Mapping[str, float]) -> Checked:
    """Claims told apart by the measured audio; what is claimed twice counts once.

    Args:
        claims: of `claims_of`.
        cues: relative cues of the clip (`relative_cues`).
    """
    parts: dict[bool | None, list[Claim]] = {True: [], False: [], None: []}
    for claim in {claim.key: claim for claim in reversed(list(claims))}.values():
        parts[is_true(claim, cues)].append(claim)
    right, wrong, unknown = (tuple(sorted(parts[k], key=lambda c: c.start)) for k in (True, False, None))
    return Checked(right, wrong, unknown)


def contradictions(claims: Iterable[Claim]) -> list[str]:
    """Dimensions of which a caption claims two levels at once, or denies the level that it claims."""
    asserted: dict[str, set[str]] = {}
    denied: dict[str, set[str]] = {}
    for claim in claims:
        (denied if claim.negated else asserted).setdefault(claim.dimension, set()).add(claim.level)
    return [d for d, levels in asserted.items() if len(levels) > 1 or levels & denied.get(d, set())]


def genders_of(caption: str) -> frozenset[str]:
    """Every gender that a caption gives the speaker: of "her" only before a noun, and of nobody spoken to."""
    text = mask_quotes(caption)
    if is_chinese(text):
        signs = {"female": ("她", "女"), "male": ("他", "男")}
        return frozenset(g for g, words in signs.items() if any(w in text.replace("其他", "") for w in words))
    tokens = tokenise(text)
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for hit in scan_english(text, gender_words()):
        following = tokens[hit.token + 1].text if hit.token + 1 < len(tokens) else "."
        as_object = hit.word == "her" and (not following[0].isalpha() or following in listed("stops"))
        before = [t.text for t in tokens[max(0, hit.token - 3) : hit.token]]
        while before and before[-1] in ("a", "an", "the", "his", "her", "some", "another", "young", "old"):
            before.pop()
        preposition = before[-1] if before else ""
        possessive = hit.word in ("his", "her")
        if not hit.value or hit.negated or as_object:
            continue
        if preposition in listed("gender", "other_side") and not possessive:
            continue
        found[preposition == "with" and not possessive].add(hit.value)
    return frozenset(found[False] or found[True])


def gender_of(caption: str) -> Gender | None:
    """The gender that a caption gives the speaker; None when it gives none, or both.

    >>> gender_of("A loud male voice, angry at her.")
    'male'
    """
    found = genders_of(caption)
    if found == {"female"}:
        return "female"
    return "male" if found == {"male"} else None
