"""What a caption claims about the voice and the speaker, and whether the measured audio bears it out.

Claims are read by rules from the words of `data/cue_words.yaml` and `data/claim_words.yaml`: no parser, some
200 microseconds a caption, always in the same way. Of Chinese captions by those of `data/cue_words_zh.yaml`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from aligncap.audio.cues import relative
from aligncap.data.manifest import Utterance
from aligncap.text.emotions import emotion_words, labels, words_of
from aligncap.text.lexicon import (
    Hit,
    Phrases,
    Token,
    adjective_forms,
    inflect,
    is_chinese,
    mask_quotes,
    scan_english,
    tokenise,
    word_list,
)
from aligncap.utils.io import Row, load_data

FILE = "cue_words.yaml"
CHINESE = "cue_words_zh.yaml"
WORDS_FILE = "claim_words.yaml"
SLACK = 0.25  # units of a relative cue by which a claim may miss the bound of its level
_REACH = 6  # tokens between an adjective and the noun it is said of

# (dimension, level) by where a word stands: the noun it is said of, "sounds", "adverb" or "anywhere"
Reading = dict[str, tuple[str, str]]

listed = partial(word_list, WORDS_FILE)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a dimension and the words that claim it, by grammatical form.

    `rank` is -1, 0 or 1: below, near or above the norm. `quality` is `voice` where the file has none.
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
class Claim:
    """One acoustic claim of a caption; `negated` turns it round ("not loud"), `start` is its offset."""

    dimension: str
    level: str
    negated: bool
    word: str
    start: int

    @property
    def claimed(self) -> Level:
        """The claimed level with its rank and words."""
        return next(level for level in dimensions()[self.dimension].levels if level.name == self.level)

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


@cache
def dimensions() -> dict[str, Dimension]:
    """Dimensions by name, in the order of the file."""
    found = {}
    for name, entry in load_data(FILE).items():
        levels = []
        for rank, (level, listed_words) in zip((-1, 0, 1), entry["levels"].items(), strict=True):
            forms = {form: tuple(words) for form, words in listed_words.items()}
            levels.append(Level(level, rank, **{"quality": forms.get("voice", ())} | forms))
        bounds = float(entry["below"]), float(entry["above"])
        found[name] = Dimension(name, entry["cue"], entry["title"], *bounds, tuple(levels))
    return found


def word_cues(relative: Mapping[str, float]) -> dict[str, str]:
    """Level names by dimension of one clip's relative cues; a cue that was not measured has no word.

    >>> word_cues({"f0_median_hz": 1.9, "rate_sps": 0.1})
    {'pitch': 'high', 'rate': 'medium'}
    """
    known = [d for d in dimensions().values() if d.cue in relative]
    return {d.name: d.level_of(relative[d.cue]).name for d in known}


@cache
def cue_words() -> Phrases[tuple[str, str]]:
    """Every word and phrase of data/cue_words.yaml with its (dimension, level)."""
    levels = [(d.name, level) for d in dimensions().values() for level in d.levels]
    return Phrases({word: (name, level.name) for name, level in levels for word in level.words})


@cache
def chinese_levels() -> dict[str, Row]:
    """Of each dimension its "nouns" and, by level, the words "said" of them, of a "voice", and "also"."""
    return {name: entry for name, entry in load_data(CHINESE).items() if name != "degrees"}


@cache
def _chinese_pattern() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """What claims a level in Chinese, the longest first; group names with their dimension and level.

    A level is said of a noun, with denial and degree between ("语速并不太快"), or by a word that needs none.
    """
    words = load_data("voice_words.yaml")["zh"]
    signs = [*words["degree"], *load_data(CHINESE)["degrees"], "偏", "明显", "稍微", "显得", "听起来"]
    degree = f"(?:{'|'.join(sorted(map(re.escape, signs), key=len, reverse=True))})*"
    found, groups = [], dict[str, tuple[str, str]]()
    for dimension, entry in chinese_levels().items():
        nouns = "|".join(entry["nouns"])
        for level in (level for level in entry if level != "nouns"):
            of_noun = f"(?:{nouns})(?:也|都|则)?(?P<no{len(groups)}>不太|并不|不算|不)?{degree}"
            group, alone = f"g{len(groups)}", [*entry[level]["voice"], *entry[level].get("also", [])]
            said = [*entry[level]["said"], *entry[level]["voice"]]
            options = [f"{of_noun}(?:{'|'.join(said)})"] if said else []
            options += [f"(?P<un{len(groups)}>不|没有|并不|不太)?(?:{'|'.join(alone)})"] if alone else []
            if options:
                found.append((max(map(len, [*said, *alone])), f"(?P<{group}>{'|'.join(options)})"))
                groups[group] = dimension, level
    ordered = sorted(found, key=lambda row: -row[0])
    return re.compile("|".join(pattern for _, pattern in ordered)), groups


def _chinese_claims(text: str, feelings: Sequence[tuple[int, int]]) -> list[Claim]:
    """Claims of a Chinese caption; a word of an emotion phrase claims nothing."""
    pattern, groups = _chinese_pattern()
    found = []
    for match in pattern.finditer(text):
        if any(a < match.end() and match.start() < b for a, b in feelings):
            continue
        group = str(match.lastgroup)  # of all that matched the outermost
        negated = any(match.groupdict().get(f"{sign}{group[1:]}") for sign in ("no", "un"))
        found.append(Claim(*groups[group], negated, match[0], match.start()))
    return found


def manner_mentions(caption: str) -> list[Claim]:
    """Cue words of a caption in order, whatever they are said of; longest match first."""
    return [Claim(*h.value, bool(h.negated), h.word, h.start) for h in scan_english(caption, cue_words())]


def manner_claims(captions: Iterable[str]) -> set[tuple[str, str]]:
    """(dimension, level) pairs of the cue words of captions."""
    return {(m.dimension, m.level) for caption in captions for m in manner_mentions(caption)}


@cache
def readings() -> Phrases[Reading]:
    """Every word and phrase with the levels it claims, by the noun it is said of."""
    found: dict[str, Reading] = {}
    for name, level in ((d.name, level) for d in dimensions().values() for level in d.levels):
        for word in level.words - listed("instead"):
            manner = word.endswith("ly") and word not in level.voice + level.quality
            place = "adverb" if word in level.adverb or manner else "anywhere" if " " in word else "voice"
            found.setdefault(word, {})[place] = name, level.name
    words = load_data(WORDS_FILE)["words"]
    for name, level_name in ((name, level_name) for name, levels in words.items() for level_name in levels):
        for place, listed_words in words[name][level_name].items():
            for word in listed_words:
                graded = place not in ("anywhere", "adverb") and " " not in word and "-" not in word
                forms = [f for f in adjective_forms(word) if graded and f.endswith(("er", "est"))]
                for form in (word, *forms):
                    found.setdefault(form, {})[place] = name, level_name
    # an idiom is found, so that no word in it is, and claims nothing
    return Phrases(found | {idiom: {} for idiom in listed("idioms")})


@cache
def nouns() -> Phrases[str]:
    """Nouns with their class: voice, pitch, range, volume, rate, intonation or person."""
    return Phrases({w: place for place, words in load_data(WORDS_FILE)["nouns"].items() for w in words})


@cache
def emotion_nouns() -> frozenset[str]:
    """Nouns that name an emotion: "a quiet sadness" says nothing of the voice."""
    return frozenset(inflect({"noun": [w for label in labels() for w in words_of(label, kinds=["noun"])]}))


@cache
def passed_over() -> frozenset[str]:
    """Words that may stand between a voice and what is said of it: "is", "very", "not", "harsh and"."""
    words = load_data("voice_words.yaml")["en"]
    phrases = (*words["words"]["adjective"], *words["ambiguous"], *words["degree"], *words["negators"])
    return listed("links") | {phrase for phrase in phrases if " " not in phrase}


@cache
def speech_verbs() -> frozenset[str]:
    """Forms of verbs of speaking."""
    forms = inflect({"verb": listed("speech_verbs")}) | listed("speech_irregular")
    return frozenset(forms - {"voice", "voices", "whisper", "cry", "cries"})


@cache
def gender_words() -> Phrases[str]:
    """Words that tell a gender, with it; "" for phrases that leave it open ("he or she")."""
    told = {"female": "female", "male": "male", "of_him": "male", "either": ""}
    return Phrases({word: gender for key, gender in told.items() for word in listed("gender", key)})


def _noun_after(tokens: Sequence[Token], i: int) -> str | None:
    """The noun class that an adjective before token i is said of, "" when it is said of another thing."""
    table, joined = nouns(), False
    for k in range(i, min(i + _REACH, len(tokens))):
        word = tokens[k].text
        if found := table.match(tokens, k):
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


def _noun_before(tokens: Sequence[Token], i: int, passed: frozenset[int]) -> str | None:
    """What a predicate at token i is said of: a noun class; "sounds" of a person, speaking or nothing."""
    table = nouns()
    for k in range(i - 1, -1, -1):
        word = tokens[k].text
        if word in (":", "–", "—", "-", "it"):
            titled = table.match(tokens, k - 1) if k and word == ":" else None
            if titled:  # "Pitch: low."
                return titled[1]
            clause = _clause(tokens, max(0, k - 1))
            return "voice" if any(t.text in listed("nouns", "voice") for t in clause) else "sounds"
        for length in range(min(3, k + 1), 0, -1):
            found = table.match(tokens, k - length + 1)
            if found and found[0] == length:
                return "sounds" if found[1] == "person" else found[1]
        if word in listed("persons") or word in speech_verbs():
            return "sounds"
        adverb = word.endswith("ly") and word != "only"
        if not (k in passed or word == "," or word in passed_over() or adverb):
            return _subject(_clause(tokens, k)) if tokens[k + 1].text in listed("copulas") else None
    return "sounds"


def _subject(clause: Sequence[Token]) -> str | None:
    """The voice that a clause begins with: "the voice of the man in this recording"; None of other things."""
    for k, token in enumerate(clause):
        if token.text in listed("other_nouns") or token.text in listed("copulas"):
            return None
        found = nouns().match(clause, k)
        if found and found[1] != "person":
            return found[1]
    return None


def _clause(tokens: Sequence[Token], i: int) -> Sequence[Token]:
    """The tokens around i that no full stop, semicolon, colon or dash parts from it."""
    marks = [k for k, token in enumerate(tokens) if token.text in (".", ";", ":", "!", "?", "–", "—")]
    first = max((k + 1 for k in marks if k < i), default=0)
    last = min((k for k in marks if k >= i), default=len(tokens))
    return tokens[first:last]


def _adverb_counts(tokens: Sequence[Token], i: int, end: int, emotional: frozenset[int]) -> bool:
    """Whether an adverb is about speaking: not "quietly furious", "quickly becoming angry"."""
    after = tokens[end].text if end < len(tokens) else ""
    if end in emotional or after in listed("changes") or after in listed("other_nouns"):
        return False
    clause = {t.text for t in _clause(tokens, i)}
    speaks = not clause.isdisjoint(speech_verbs() | listed("nouns", "voice"))
    return speaks or clause.isdisjoint(listed("persons"))


def claims_of(caption: str) -> list[Claim]:
    """Acoustic claims of a caption in order, without quotes, emotion phrases and other things' qualities.

    >>> [str(c) for c in claims_of("Not loud, in high spirits, she speaks quickly in a low, tender voice.")]
    ['effort not forceful', 'rate fast', 'pitch low']
    """
    text = mask_quotes(caption)
    feelings = [(m.start, m.start + len(m.word)) for m in emotion_words(caption)]
    if is_chinese(text):
        return _chinese_claims(text, feelings)
    tokens = tokenise(text)
    hits = scan_english(text, readings())
    emotional = frozenset(k for k, t in enumerate(tokens) if any(a <= t.start < b for a, b in feelings))
    spans = [range(h.token, h.token + sum(h.start <= t.start < h.end for t in tokens)) for h in hits]
    passed = emotional.union(*spans)
    found = []
    for hit, span in zip(hits, spans, strict=True):
        # "less loud" is said of a change, "not less loud" is beyond rules: neither claims a level
        if emotional.isdisjoint(span) and not hit.degree.endswith("less"):
            if claim := _reading(tokens, hit, span.stop, emotional, passed):
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
        noun = _noun_after(tokens, end)
        if noun == "":
            return None
        if noun in found:
            return found[str(noun)]
        if noun in ("pitch", "intonation") and found.get("voice", ("",))[0] in ("effort", "rate"):
            return found["voice"]  # "a slow, low register"
        # "deep calm" grades the feeling, as no predicate stands right before an emotion word
        said_of = None if end in emotional else _noun_before(tokens, hit.token, passed)
        if noun in (None, "person") and said_of in found:
            return found[str(said_of)]
    if "adverb" in found and _adverb_counts(tokens, hit.token, end, emotional):
        return found["adverb"]
    return None


def relative_cues(utterances: Sequence[Utterance]) -> list[dict[str, float]]:
    """Cues of each clip against its speaker's norm (`audio.cues.relative`); empty where none was measured."""
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
    bounds = -math.inf, dimension.below, dimension.above, math.inf
    low, high = bounds[claim.claimed.rank + 1], bounds[claim.claimed.rank + 2]
    slack = -SLACK if claim.negated else SLACK
    return (low - slack <= value <= high + slack) != claim.negated


def check(claims: Iterable[Claim], cues: Mapping[str, float]) -> Checked:
    """Claims told apart by the measured audio; what is claimed twice counts once.

    Args:
        claims: of `claims_of`.
        cues: relative cues of the clip (`relative_cues`).
    """
    first = {claim.key: claim for claim in reversed(list(claims))}.values()
    verdicts = [(is_true(claim, cues), claim) for claim in sorted(first, key=lambda claim: claim.start)]
    return Checked(*(tuple(c for found, c in verdicts if found is kind) for kind in (True, False, None)))


def conflicts(claims: Iterable[Claim]) -> list[str]:
    """Dimensions of which a caption claims two levels at once, or denies the level that it claims."""
    asserted: dict[str, set[str]] = {}
    denied: dict[str, set[str]] = {}
    for claim in claims:
        (denied if claim.negated else asserted).setdefault(claim.dimension, set()).add(claim.level)
    return [d for d, levels in asserted.items() if len(levels) > 1 or levels & denied.get(d, set())]


def genders_of(caption: str) -> frozenset[str]:
    """Every gender that a caption gives the speaker: of "her" only before a noun, and of nobody spoken to.

    >>> genders_of("A loud male voice, angry at her.")
    frozenset({'male'})
    """
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
        preposition = before[-1] if before and hit.word not in ("his", "her") else ""
        if hit.value and not hit.negated and not as_object:
            if preposition not in listed("gender", "other_side"):
                found[preposition == "with"].add(hit.value)
    return frozenset(found[False] or found[True])
