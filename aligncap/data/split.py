"""Identical clips, and parts of a corpus that share no speaker."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aligncap.data.manifest import Utterance, read_manifest, rebase, write_manifest
from aligncap.utils.errors import UserError, UserErrors, natural, nearest

if TYPE_CHECKING:
    from aligncap.data.manifest import Utterance

_log = logging.getLogger(__name__)


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


def duplicate_notes(utterances: Iterable[Utterance]) -> list[str]:
    """A line for each group of identical clips."""
    return [f"identical clips: {', '.join(ids)}" for ids in duplicates(utterances)]


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
    dev_speakers: Sequence[str] | None = None,
    test_speakers: Sequence[str] | None = None,
) -> dict[str, list[Utterance]]:
    """Split into train, dev and test so that no speaker is in two parts.

    The last `test` speakers in natural order are the test set and the `dev` before them the dev set; a
    `seed` shuffles the speakers first. A list of speakers replaces the number; names may be given without
    their corpus ("21" for "ravdess-21"). Identical clips in different parts are a warning in the log.

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
    both = sorted(set(chosen_dev or []) & set(chosen_test or []), key=natural)
    if both:
        raise UserError(f"speaker {', '.join(both)} is named for dev and for test; name each once")
    if min(dev, test) < 0:
        raise UserError("--dev and --test are numbers of speakers, 0 or more")
    free = [s for s in speakers if s not in {*(chosen_dev or []), *(chosen_test or [])}]
    wanted = (0 if chosen_dev is not None else dev) + (0 if chosen_test is not None else test)
    if wanted >= len(free):
        raise UserError(
            f"{len(speakers)} speakers are too few: dev and test take {len(speakers) - len(free) + wanted} "
            "and at least one must be left for training; ask for fewer"
        )
    if seed is not None:
        random.Random(seed).shuffle(free)
    if chosen_test is None:
        chosen_test = free[len(free) - test :]
        free = free[: len(free) - test]
    if chosen_dev is None:
        chosen_dev = free[len(free) - dev :]
    part = {**dict.fromkeys(chosen_dev, "dev"), **dict.fromkeys(chosen_test, "test")}
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for u in utterances:
        parts[part.get(str(u.speaker), "train")].append(u)
    for note in straddling(parts):
        _log.warning("%s; drop one of them, or name the speakers of each part", note)
    return parts


def _named(
    names: Sequence[str] | None, speakers: Sequence[str], utterances: Sequence[Utterance]
) -> list[str] | None:
    if names is None:
        return None
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
    parts = {str(path): rebase(read_manifest(path), path, out) for path in paths}
    first: dict[str, str] = {}
    errors = []
    for path, utterances in parts.items():
        errors += [
            f'{path}: id "{u.id}" is used in {first[u.id]} too; ids must differ, so name each clip once'
            for u in utterances
            if u.id in first
        ]
        first.update((u.id, path) for u in utterances)
    if errors:
        raise UserErrors(errors)
    for note in straddling(parts):
        _log.warning("%s; drop one of them", note)
    joined = [u for utterances in parts.values() for u in utterances]
    write_manifest(out, joined)
    return joined
