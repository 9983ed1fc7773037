"""Pairs as they are read from files, and which clips judge a run."""

from __future__ import annotations

import pytest

from aligncap.data.manifest import read_manifest
from aligncap.data.split import choose_evenly
from aligncap.training.clips import read_clips
from aligncap.training.preference_data import read_pairs
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import write_jsonl


def test_dev_clips_take_turns_by_label(manifest):
    clips = read_manifest(manifest)
    labels = [clips[i].emotion for i in choose_evenly(clips, len(set(u.emotion for u in clips)), seed=0)]
    assert len(labels) == len(set(labels))
    assert choose_evenly(clips, 99, seed=0) == list(range(len(clips)))


def test_faulty_pairs_are_all_named(tmp_path, start, manifest):
    path = tmp_path / "pairs.jsonl"
    clip = read_manifest(manifest)[0].id
    write_jsonl(
        path,
        [
            {"id": clip, "chosen": "A.", "rejected": "A."},
            {"id": "nobody", "chosen": "A.", "rejected": "B."},
            {"id": clip, "chosen": "A."},
        ],
    )
    with pytest.raises(UserErrors) as caught:
        read_pairs(str(path), read_clips(str(manifest)), None)
    text = str(caught.value)
    assert all(f"pairs.jsonl:{n}:" in text for n in (1, 2, 3))


def test_pairs_of_other_kinds_are_left_out_and_none_is_an_error(pairs, manifest):
    clips = read_clips(str(manifest))
    found = read_pairs(str(pairs), clips, ["best-worst"])
    assert found and all(p.rejected == "The voice." for p in found)
    assert len(read_pairs(str(pairs), clips, None)) > len(found)
    with pytest.raises(UserError, match="it holds best-worst, other-clip"):
        read_pairs(str(pairs), clips, ["flipped-claim"])
