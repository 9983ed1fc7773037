"""A start, pairs and a short run of `train dpo`, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from preferring import run
from tiny import save_model

from aligncap.data.manifest import read_manifest
from aligncap.utils.io import write_jsonl


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A whole untrained checkpoint."""
    return save_model(tmp_path_factory.mktemp("start") / "model", projector_dropout=0.0)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory, manifest) -> Path:
    """Two pairs a clip: its caption against the next clip's, and against a cut one."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    clips = read_manifest(manifest)
    rows = []
    for u, other in zip(clips, clips[1:] + clips[:1]):
        if u.captions[0] == other.captions[-1]:
            continue
        common = {"id": u.id, "manifest": os.path.relpath(manifest, path.parent)}
        rows.append(common | {"chosen": u.captions[0], "rejected": other.captions[-1], "kind": "other-clip"})
        rows.append(common | {"chosen": u.captions[0], "rejected": "The voice.", "kind": "best-worst"})
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="session")
def preferred(tmp_path_factory, start, pairs):
    out = tmp_path_factory.mktemp("runs") / "dpo"
    run(out, start, pairs, reference_cache="no")
    return out
