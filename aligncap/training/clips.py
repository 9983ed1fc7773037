"""The clips of a manifest, as training reads them: each manifest once, its files looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from aligncap.audio.files import info
from aligncap.data.clip_files import Keys, Locator, Paths, audio_files
from aligncap.data.manifest import Utterance
from aligncap.data.rows import Manifest, open_manifest
from aligncap.data.split import balanced
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserErrors


@dataclass(frozen=True)
class Clips:
    """The clips of one manifest, whose rows stay in its file.

    keys: SHA-256 of each utterance's sound file; paths: the file behind each key.
    """

    manifest: str
    utterances: Manifest
    keys: Keys
    paths: Paths

    def chosen(self, places: Sequence[int] | np.ndarray) -> Clips:
        """The clips at these places, in this order; a place may stand several times."""
        utterances, keys = self.utterances.chosen(places), self.keys.chosen(places)
        return Clips(self.manifest, utterances, keys, Paths(keys, Locator(self.manifest, utterances)))

    @property
    def shards(self) -> np.ndarray | None:
        """(clips,): the number of each clip's tar shard, -1: none; None: no clip lies in one."""
        found = self.utterances.columns.shard
        return found if (found >= 0).any() else None

    def at_most(self, number: int, seed: int = 0) -> Clips:
        """All places of `number` sound files drawn at random; all clips where there are no more."""
        which = self.keys.same()
        files = int(which.max()) + 1
        if files <= number:
            return self
        drawn = np.random.default_rng(seed).choice(files, number, replace=False)
        return self.chosen(np.flatnonzero(np.isin(which, drawn)))

    def seconds(self, keys: Iterable[str] | None = None) -> float:
        """Length of these sound files, or of all; about, by a few headers, where the manifest lacks it."""
        rows = self.paths.first_rows()
        if keys is not None:
            wanted = set(keys)
            rows = np.array([row for row in rows.tolist() if self.keys[row] in wanted], np.int64)
        told = self.utterances.columns.seconds[rows]
        untold = rows[np.isnan(told)].tolist()
        read = [info(self.paths[self.keys[r]]).duration_s for r in untold[:: max(1, len(untold) // 64)]]
        return float(np.nansum(told)) + len(untold) * (sum(read) / len(read) if read else 0.0)

    def balanced(self) -> Clips:
        """Clips of rarer emotion labels repeated until labels count about alike; see `balanced`."""
        return self.chosen(balanced(self.utterances))


def read_clips(manifest: str, *, captions: bool = True, p_act: bool = False, group: Group = ALONE) -> Clips:
    """The clips of a manifest, with captions, and acoustic prompts, where these are needed.

    Args:
        group: the processes that share looking at the files; each must call this.

    Raises:
        UserErrors: utterances without captions or acoustic prompts, sound files that are missing or have
            changed, all of them.
    """
    utterances = open_manifest(manifest)
    columns = utterances.columns
    bare = captions & (columns.captions == 0)
    unprompted = p_act & ~bare & (columns.p_act != columns.captions)
    errors = []
    for row in np.flatnonzero(bare | unprompted).tolist():
        lacks = ("captions", "annotate") if bare[row] else ("acoustic prompts", "clues")
        name = f"{manifest}:{row + 1}: {utterances[row].id}"
        errors.append(f"{name} has no {lacks[0]}; run `aligncap {lacks[1]}` on it")
    if errors:
        raise UserErrors(errors)
    return Clips(manifest, utterances, *audio_files(manifest, utterances, group))


def instruction_of(u: Utterance, caption: int) -> str:
    """What a caption of an utterance answers; "": to describe how the speaker sounds."""
    return u.instructions[caption] if u.instructions else ""
