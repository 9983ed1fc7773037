"""`aligncap people`: measured cues and captions' claims against words that people used of the same voices.

People's words come from neither labels nor templates. The unit is the speaker, of whom the words are said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.console import Console
from rich.table import Table

from aligncap.audio.cues import measure_many
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.text.claims import claims_of, dimensions, genders_of
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import Row, load_data, read_jsonl, write_json
from aligncap.utils.options import Config, PositiveInt, option
from aligncap.utils.run_record import file_hashes
from aligncap.utils.statistics import FEWEST, Floats, Interval, Ints, jackknife

Key = tuple[str, str]  # corpus and speaker
Speakers = Mapping[Key, Mapping[str, float]]  # means over clips, by name


@dataclass
class PeopleConfig(Config):
    """How well cues and captions tell apart the voices that people described by opposed words.

    Examples:
        aligncap people librittsp.jsonl --out people.json
        aligncap people librittsp.jsonl --captions captions.jsonl --out people.json
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: str = option(help="Manifest with people's words in extra.voice, as of `prepare librittsp`.")
    captions: str | None = option(None, "Captions of its clips (`aligncap caption --out`).")
    out: str | None = option(None, "JSON to write.")
    workers: PositiveInt = option(1, "Processes that measure cues, where the manifest has none.")


def run_people(config: PeopleConfig) -> int:
    """`aligncap people`: print the table, write --out."""
    result = people(config)
    if config.out:
        write_json(config.out, result)
    Console().print(table_of(result["pairs"]))
    print("AUC: .5 is chance, below it the second word has more; * the cue expected. Units: speakers.")
    return 0


def people(config: PeopleConfig) -> Row:
    """Scores of every pair of data/people.yaml.

    Returns {"clips", "speakers", "agree", "files": hashes, "pairs": {pair: {"first", "second": speakers of a
    side, "cue", "claim": those expected, "cues", "claims": {name: interval}, "people", "people_accuracy"}}}.

    Raises:
        UserErrors: no words in the manifest, captions of other clips, files that cannot be read.
    """
    utterances = read_manifest(config.manifest)
    voices = voices_of(utterances, config.manifest)
    spoken = [u for u in utterances if (u.corpus, u.speaker) in voices]
    claims = _claims(config.captions, spoken) if config.captions else {}
    fresh = iter(measure_many([audio_path(config.manifest, u) for u in spoken if not u.cues], config.workers))
    found = [u.cues or next(fresh) for u in spoken]
    if errors := [one for one in found if isinstance(one, str)]:
        raise UserErrors(errors)
    data, known = load_data("people.yaml"), load_data("cues.yaml")["cues"].keys()
    measured = [{} if isinstance(one, str) else {c: one[c] for c in known & one.keys()} for one in found]
    cues = means(spoken, measured)
    pairs = {}
    for name, pair in data["pairs"].items():
        votes = {key: votes_of(voice, pair, data["grades"]) for key, voice in voices.items()}
        sides = {key: side for key, vote in votes.items() if (side := majority(vote, data["agree"]))}
        said = list(sides.values())
        pairs[name] = pair | {"first": said.count(1), "second": said.count(-1)} | agreement(votes, sides)
        pairs[name] |= {"cues": told_apart(cues, sides), "claims": told_apart(claims, sides)}
    files = file_hashes([path for path in (config.manifest, config.captions) if path])
    counts = {"clips": len(spoken), "speakers": len(voices), "agree": data["agree"], "files": files}
    return counts | {"pairs": pairs}


def voices_of(utterances: Sequence[Utterance], manifest: str) -> dict[Key, dict[str, list[str]]]:
    """People's words of each speaker, {annotator: [words]}."""
    voices: dict[Key, dict[str, list[str]]] = {}
    errors = []
    for u in (u for u in utterances if u.speaker is not None and u.extra.get("voice") is not None):
        voice = u.extra["voice"]
        words = [*voice.values()] if isinstance(voice, dict) else [None]
        if not all(isinstance(one, list) and all(isinstance(w, str) for w in one) for one in words):
            errors.append(f"{manifest}: {u.id}: extra.voice is to be {{annotator: [words]}}")
        elif voices.setdefault((u.corpus, str(u.speaker)), voice) != voice:
            errors.append(f"{manifest}: {u.id}: other words of speaker {u.speaker} than an earlier clip has")
    if errors or not voices:
        nothing = f"{manifest}: no clip has people's words in extra.voice; `prepare librittsp` has them"
        raise UserErrors(errors or [nothing])
    return voices


def votes_of(voice: Mapping[str, Sequence[str]], pair: Row, grades: Mapping[str, int]) -> dict[str, int]:
    """What each annotator says: the grade of the first side less that of the second, 0 for no choice.

    >>> votes_of({"a": ["very calm", "lively"]}, {"first": ["lively"], "second": ["calm"]}, {"very": 3})
    {'a': -1}
    """

    def grade(words: Sequence[str], side: Sequence[str]) -> int:
        parts = [(w, 2) if " " not in w else (w.split(" ", 1)[1], grades.get(w.split()[0], 2)) for w in words]
        return max((weight for word, weight in parts if word in side), default=0)

    return {who: grade(words, pair["first"]) - grade(words, pair["second"]) for who, words in voice.items()}


def majority(votes: Mapping[str, int], agree: int) -> int:
    """1 or -1: the side of most of those who chose, being at least `agree`; else 0."""
    first, second = (sum(side * vote > 0 for vote in votes.values()) for side in (1, -1))
    return 0 if first == second or max(first, second) < agree else 1 if first > second else -1


def means(utterances: Sequence[Utterance], values: Sequence[Mapping[str, float]]) -> Speakers:
    """Means over each speaker's clips; what was measured in none of them is absent."""
    found: dict[Key, dict[str, list[float]]] = {}
    for u, one in zip(utterances, values, strict=True):
        for name, value in one.items():
            found.setdefault((u.corpus, str(u.speaker)), {}).setdefault(name, []).append(value)
    return {key: {name: float(np.mean(v)) for name, v in one.items()} for key, one in found.items()}


def claimed(caption: str) -> dict[str, float]:
    """Mean rank of each dimension that a caption claims; gender: 1 female, -1 male; 0 of what it leaves open.

    >>> claimed("He speaks quickly.")["rate"], claimed("He speaks quickly.")["gender"]
    (1.0, -1.0)
    """
    ranks: dict[str, list[int]] = {name: [] for name in dimensions()}
    for claim in claims_of(caption):
        ranks[claim.dimension].append(-claim.claimed.rank if claim.negated else claim.claimed.rank)
    genders = genders_of(caption)
    gender = float("female" in genders) - float("male" in genders)
    return {name: float(np.mean(r)) if r else 0.0 for name, r in ranks.items()} | {"gender": gender}


def _claims(path: str, utterances: Sequence[Utterance]) -> Speakers:
    by_id, errors = {u.id: u for u in utterances}, []
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("caption"), str):
            errors.append(
                f'{path}:{number}: "id" and "caption" must both be text; run aligncap caption again'
            )
        elif row["id"] not in by_id:
            errors.append(f"{path}:{number}: id {row['id']!r} is none of the manifest's clips with words")
    if errors or not rows:
        raise UserErrors(errors or [f"{path}: no captions"])
    return means([by_id[row["id"]] for row in rows], [claimed(row["caption"]) for row in rows])


def auc(values: Floats, sides: Ints | Floats) -> float:
    """Chance that a speaker of side 1 has more than one of side -1, ties half; NaN without either."""
    first, second = values[sides == 1], values[sides == -1]
    apart = np.sign(first[:, None] - second)
    return float((1 + apart.mean()) / 2) if apart.size else np.nan


def told_apart(speakers: Speakers, sides: Mapping[Key, int]) -> dict[str, Interval]:
    """AUC of each value between speakers of the two sides, with its interval."""
    found = {}
    for name in sorted({name for one in speakers.values() for name in one}):
        keys = [key for key in sides if name in speakers.get(key, {})]
        values = np.array([speakers[key][name] for key in keys])
        found[name] = _interval(auc, values, np.array([sides[key] for key in keys]))
    return found


def agreement(votes: Mapping[Key, Mapping[str, int]], sides: Mapping[Key, int]) -> Row:
    """People against each other: each annotator against the majority of the others.

    `people` is the mean over annotators of the AUC of their grades on the speakers of `sides`, silence being
    0; `people_accuracy` of the share of right sides on all speakers on whom they chose, and the others too.
    """
    who = sorted({name for vote in votes.values() for name in vote})
    own = np.array([[vote.get(name, 0) for name in who] for vote in votes.values()], dtype=np.float64)
    others = np.sign(np.sign(own).sum(axis=1, keepdims=True) - np.sign(own))
    columns = list(zip(own.T, others.T, strict=True))

    def mean(values: Floats, _: Ints) -> float:
        each = [auc(values[:, i], values[:, i + len(who)]) for i in range(len(who))]
        return float(np.mean(known)) if (known := [one for one in each if np.isfinite(one)]) else np.nan

    right = [(np.sign(o) == t)[o * t != 0].mean() for o, t in columns if (o * t != 0).any()]
    rows = np.hstack([own, others])[[key in sides for key in votes]]
    interval = _interval(mean, rows, np.array(list(sides.values())))
    return {"people": interval, "people_accuracy": float(np.mean(right)) if right else None}


def _interval(score: Callable[[Floats, Ints], float], values: Floats, sides: Ints) -> Interval:
    """Score and 95 % interval by the jackknife; its degrees of freedom fall with the smaller side."""
    value = score(values, sides) if len(sides) else np.nan
    cell: Interval = {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    if cell["value"] is None or len(sides) < FEWEST:
        return cell
    rest = [score(np.delete(values, i, axis=0), np.delete(sides, i)) for i in range(len(sides))]
    weights = 1 / np.array([(sides == side).sum() for side in sides])
    return jackknife(value, np.array(rest), weights, top=1.0)


def table_of(pairs: Mapping[str, Row]) -> Table:
    """The table for the terminal: pairs down, cues, the claim expected and people across."""
    cues = sorted({cue for row in pairs.values() for cue in row["cues"]})
    table = Table("first/second", "speakers", *cues, "claims", "people")
    for name, row in pairs.items():
        cells = [_shown(row["cues"].get(cue), cue == row["cue"]) + "*" * (cue == row["cue"]) for cue in cues]
        claim = f"{row['claim']} {_shown(row['claims'].get(row['claim']), True)}"
        table.add_row(name, f"{row['first']}/{row['second']}", *cells, claim, _shown(row["people"], True))
    return table


def _shown(cell: Interval | None, ends: bool) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    ends = ends and cell["low"] is not None
    return f"{cell['value']:.2f}" + (f" [{cell['low']:.2f}, {cell['high']:.2f}]" if ends else "")
