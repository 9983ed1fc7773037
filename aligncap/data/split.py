"""Identical clips, parts of a corpus that share no speaker, and clips repeated so that labels count alike."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from aligncap.data.columns import columns_of
from aligncap.data.manifest import Utterance, read_manifest, rebase, write_manifest
from aligncap.utils.errors import UserError, UserErrors, natural, nearest
from aligncap.utils.options import Config, NaturalInt, changed, option
from aligncap.utils.statistics import Spoken

_log = logging.getLogger(__name__)
MOST_REPEATS = 4  # of a clip, in balancing


@dataclass
class SplitConfig(Config):
    """Split a manifest into train, dev and test so that no speaker is in two of them.

    Examples:
        aligncap split clued.jsonl --dev 2 --test 4 --out runs/data
        aligncap split clued.jsonl --test_speakers 21 22 23 24 --dev 2 --out runs/data
        aligncap split clued.jsonl --folds 6 --fold 0 --out runs/folds/0/data
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: str = option(help="Manifest to split.")
    out: str = option(help="Folder for train.jsonl, dev.jsonl and test.jsonl.")
    by: Literal["speaker"] = option("speaker", "What no two parts share.")
    dev: NaturalInt = option(2, "Number of dev speakers, of each corpus: those before the test speakers.")
    test: NaturalInt = option(4, "Number of test speakers, of each corpus: the last in natural order.")
    dev_speakers: list[str] = option([], "Dev speakers by name, in place of a number.")
    test_speakers: list[str] = option([], "Test speakers by name, in place of a number.")
    folds: NaturalInt = option(0, "Cross-validation: of so many groups of speakers one is the test set.")
    fold: NaturalInt = option(0, "Which of them, from 0.")
    seed: NaturalInt | None = option(None, "Shuffle the speakers first.")

    def own_errors(self) -> list[str]:
        if self.folds and self.test_speakers:
            return ["test_speakers and folds: choose one"]
        if self.folds and changed(self, ["test"]):
            return ["test: a fold is the test set; leave it out"]
        if self.fold and not self.folds:
            return ["fold: has no effect without --folds"]
        return [f"fold={self.fold}: there are folds 0 to {self.folds - 1}"] * (0 < self.folds <= self.fold)


@dataclass
class JoinConfig(Config):
    """Write several manifests into one, in their order. An id that two of them use is an error.

    Examples:
        aligncap join ravdess.jsonl crema-d.jsonl --out train.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifests",)

    manifests: list[str] = option(help="Manifests to join.")
    out: str = option(help="Manifest to write.")


def run_split(config: SplitConfig) -> int:
    """`aligncap split`."""
    utterances = read_manifest(config.manifest)
    tested = config.test_speakers
    if config.folds:
        tested = fold_speakers(utterances, config.folds, config.seed)[config.fold]
    parts = split_by_speaker(
        utterances,
        config.dev,
        config.test,
        config.seed,
        dev_speakers=config.dev_speakers,
        test_speakers=tested,
    )
    for name, utterances in parts.items():
        out = Path(config.out) / f"{name}.jsonl"
        write_manifest(out, rebase(utterances, config.manifest, out))
        speakers = sorted({str(u.speaker) for u in utterances})
        print(f"{out}: {len(utterances)} clips of {len(speakers)} speakers: {', '.join(speakers)}")
    return 0


def run_join(config: JoinConfig) -> int:
    """`aligncap join`."""
    joined = join_manifests(config.manifests, config.out)
    corpora = ", ".join(sorted({u.corpus for u in joined}))
    print(f"{config.out}: {len(joined)} clips of {corpora}")
    return 0


def duplicates(utterances: Iterable[Utterance]) -> list[list[str]]:
    """Groups of ids whose clips are the same: equal sha256 of the bytes, or of the decoded samples
    (`extra["samples_sha256"]`, which `prepare` writes and which survives a lossless change of container).
    """
    groups: list[list[str]] = []
    of: dict[tuple[str, str], list[str]] = {}
    for u in utterances:
        hashes = [("bytes", u.sha256), ("samples", u.extra.get("samples_sha256"))]
        keys = [(kind, value) for kind, value in hashes if value]
        mine = next((of[key] for key in keys if key in of), None)
        if mine is None:
            groups.append(mine := [])
        mine.append(u.id)
        for key in keys:
            of.setdefault(key, mine)
    return [ids for ids in groups if len(ids) > 1]


def straddling(parts: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """A line for each group of identical clips of which more than one part of a split holds one."""
    part_of = {u.id: name for name, part in parts.items() for u in part}
    groups = duplicates(u for part in parts.values() for u in part)
    return [
        "identical clips in different parts: " + ", ".join(f"{i} ({part_of[i]})" for i in ids)
        for ids in groups
        if len({part_of[i] for i in ids}) > 1
    ]


def split_by_speaker(
    utterances: Sequence[Utterance],
    dev: int = 0,
    test: int = 0,
    seed: int | None = None,
    dev_speakers: Sequence[str] = (),
    test_speakers: Sequence[str] = (),
) -> dict[str, list[Utterance]]:
    """Split into train, dev and test so that no speaker is in two parts.

    The last `test` speakers in natural order are the test set and the `dev` before them the dev set; a
    `seed` shuffles the speakers first. Of several corpora each gives so many, at most a quarter of its own
    (one of three, none of two, which is a warning in the log). A list of speakers replaces the number; names
    may be given without their corpus ("21" for "ravdess-21").
    Identical clips in different parts are a warning in the log.

    Raises:
        UserErrors: utterances without a speaker.
        UserError: an unknown or ambiguous speaker, one named for two parts, or none left to train on.
    """
    nameless = [u.id for u in utterances if not u.speaker]
    if nameless:
        raise UserErrors([f"{i}: no speaker; add one to the manifest to split by speaker" for i in nameless])
    speakers = sorted({str(u.speaker) for u in utterances}, key=natural)
    chosen_dev = _named(dev_speakers, speakers, utterances)
    chosen_test = _named(test_speakers, speakers, utterances)
    if both := sorted(set(chosen_dev) & set(chosen_test), key=natural):
        raise UserError(f"speaker {', '.join(both)} is named for dev and for test; name each once")
    if min(dev, test) < 0:
        raise UserError("dev and test are numbers of speakers, 0 or more")
    free = [s for s in speakers if s not in {*chosen_dev, *chosen_test}]
    dev, test = 0 if chosen_dev else dev, 0 if chosen_test else test
    if seed is not None:
        random.Random(seed).shuffle(free)
    corpora = {str(u.speaker): u.corpus for u in utterances}
    for corpus in (several := sorted({corpora[s] for s in free})):
        own = [s for s in free if corpora[s] == corpus]
        most = max(len(own) // 4, 1) if len(several) > 1 else len(own)
        if len(several) > 1 and len(own) < 3:
            most = 0
            _log.warning("%s: too few speakers for dev and test, all are for training", corpus)
        tested, tuned = min(test, most), min(dev, most)
        if tested + tuned >= len(own):
            taken = len(speakers) - len(free) + tested + tuned
            raise UserError(
                f"{len(speakers)} speakers are too few: dev and test take {taken} "
                "and at least one must be left for training; ask for fewer"
            )
        chosen_test += own[len(own) - tested :]
        chosen_dev += own[len(own) - tested - tuned : len(own) - tested]
    part = {**dict.fromkeys(chosen_dev, "dev"), **dict.fromkeys(chosen_test, "test")}
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for u in utterances:
        parts[part.get(str(u.speaker), "train")].append(u)
    for note in straddling(parts):
        _log.warning("%s; drop one of them, or name the speakers of each part", note)
    return parts


def fold_speakers(utterances: Sequence[Spoken], folds: int, seed: int | None = None) -> list[list[str]]:
    """The speakers of each fold: those of each corpus in as many groups, as equal as can be, in natural order
    or shuffled by `seed`.

    Raises:
        UserError: a corpus has fewer speakers than folds.
    """
    found: list[list[str]] = [[] for _ in range(folds)]
    for corpus in sorted({u.corpus for u in utterances}):
        own = sorted({u.speaker for u in utterances if u.corpus == corpus and u.speaker}, key=natural)
        if len(own) < folds:
            raise UserError(f"{corpus}: {len(own)} speakers are too few for {folds} folds")
        if seed is not None:
            random.Random(seed).shuffle(own)
        for k, group in enumerate(found):
            group += own[len(own) * k // folds : len(own) * (k + 1) // folds]
    return found


def _named(names: Sequence[str], speakers: Sequence[str], utterances: Sequence[Utterance]) -> list[str]:
    """Full names of the speakers named, which may lack their corpus."""
    aliases: dict[str, set[str]] = defaultdict(set)
    for u in utterances:
        aliases[str(u.speaker)].add(str(u.speaker))
        aliases[str(u.speaker).removeprefix(f"{u.corpus}-")].add(str(u.speaker))
    chosen: list[str] = []
    for name in names:
        found = {name} if name in speakers else aliases.get(name, set())
        if len(found) != 1:
            what = f"means {' and '.join(sorted(found))}" if found else "is not in the manifest"
            raise UserError(
                f'speaker "{name}" {what}{nearest(name, speakers)}; there are {", ".join(speakers)}'
            )
        chosen += found
    return chosen


def choose_evenly(utterances: Sequence[Utterance], limit: int, seed: int) -> list[int]:
    """Indices of up to `limit` utterances at random, emotion labels as even as they come, in the order given.

    A larger limit adds to a smaller one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, u in enumerate(utterances):
        groups[u.emotion or ""].append(index)
    draw = random.Random(seed)
    ranked = []
    for emotion in sorted(groups):
        draw.shuffle(groups[emotion])
        ranked += [(place, draw.random(), index) for place, index in enumerate(groups[emotion])]
    return sorted(index for *_, index in sorted(ranked)[:limit])


def join_manifests(paths: Sequence[str | Path], out: str | Path) -> list[Utterance]:
    """Write the utterances of several manifests into one, in their order, and return them.

    Relative roots still lead to the audio. Identical clips of different manifests are a warning in the log.

    Raises:
        UserErrors: ids that more than one manifest uses.
        UserError: a manifest cannot be read, or `out` not written.
    """
    read = [(str(path), rebase(read_manifest(path), path, out)) for path in paths]
    first: dict[str, str] = {}
    errors = []
    for path, utterances in read:
        errors += [
            f'{path}: id "{u.id}" is used in {first[u.id]} too; ids must differ, so name each clip once'
            for u in utterances
            if u.id in first
        ]
        first.update((u.id, path) for u in utterances)
    if errors:
        raise UserErrors(errors)
    for note in straddling(dict(read)):
        _log.warning("%s; drop one of them", note)
    joined = [u for _, utterances in read for u in utterances]
    write_manifest(out, joined)
    return joined


def balanced(utterances: Sequence[Utterance]) -> list[int]:
    """Places of the utterances, those of rarer emotion labels repeated until labels count about alike, and
    within a label its corpora.

    A label that the model never names costs the same whether it is rare or frequent, so it must be learnt
    alike; so must a small corpus, whose rooms and voices are as many as a large one's. A clip stands at most
    `MOST_REPEATS` times, one without a label once.
    """
    columns = columns_of(utterances)
    codes = np.stack([columns.emotion, columns.corpus], axis=1)
    kinds, kind, numbers = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    counts, labels = dict[tuple[str, str], int](), Counter[str]()
    for (label, corpus), number in zip(kinds.tolist(), numbers.tolist(), strict=True):
        if label >= 0:
            name = columns.names["emotion"][label]
            counts[name, columns.names["corpus"][corpus]] = number
            labels[name] += number
    corpora = Counter(label for label, _ in counts)
    most = max(labels.values(), default=0)
    times = {
        kind: max(1, min(MOST_REPEATS, round(most / corpora[kind[0]] / count)))
        for kind, count in counts.items()
    }
    if max(times.values(), default=1) > 1:
        shown = ", ".join(f"{n} {k[0]} of {k[1]} × {times[k]}" for k, n in sorted(counts.items()))
        _log.info("balanced: %s; without a label: %d", shown, len(utterances) - sum(counts.values()))
    repeats = [
        times.get((columns.names["emotion"][label], columns.names["corpus"][corpus]), 1) if label >= 0 else 1
        for label, corpus in kinds.tolist()
    ]
    return np.repeat(np.arange(len(columns)), np.array(repeats, np.int64)[kind.reshape(-1)]).tolist()
