"""A corpus reader of one's own: a function and its registration, in well under 40 lines."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aligncap.cli import main
from aligncap.data.corpora import Corpus, CorpusFolder, corpora, prepare, registry
from aligncap.data.manifest import Utterance, read_manifest
from aligncap.utils.errors import UserError

LABELS = {"dis": "disgusted", "gio": "happy", "neu": "neutral", "pau": "fearful", "rab": "angry", "tri": None}


def theatre(folder: CorpusFolder) -> Iterator[Utterance]:
    for path, name in folder.match(r"(?P<emotion>[a-z]{3})-(?P<speaker>[fm]\d)-(?P<sentence>\w+)"):
        yield folder.clip(
            path,
            speaker=name["speaker"],
            gender="female" if name["speaker"].startswith("f") else "male",
            emotion=name["emotion"],
            extra={"sentence": name["sentence"]},
        )


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_corpora", dict(registry._corpora))
    Corpus("theatre", "f1/dis-f1-b1.flac", language="it", labels=LABELS)(theatre)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    time = np.arange(4000) / 16_000
    for number, name in enumerate(("f1/gio-f1-b1", "m2/tri-m2-l3", "m2/xxx-m2-l3", "m2/notes")):
        path = tmp_path / "corpus" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 20 * number) * time), 16_000)
    return tmp_path / "corpus"


def test_a_reader_of_one_s_own_is_a_corpus_like_any_other(
    registered: None, folder: Path, tmp_path: Path
) -> None:
    assert len(inspect.getsource(theatre).splitlines()) < 40 and "theatre" in corpora()
    assert main(["prepare", "theatre", str(folder), "--out", str(tmp_path / "m.jsonl")]) == 0
    report = prepare("theatre", folder, tmp_path / "m.jsonl")
    happy, sad = read_manifest(tmp_path / "m.jsonl")
    assert (happy.id, happy.speaker, happy.gender) == ("theatre-gio-f1-b1", "theatre-f1", "female")
    assert (happy.emotion, happy.language, happy.corpus) == ("happy", "it", "theatre")
    assert (sad.emotion, sad.extra["sentence"]) == (None, "l3")  # a code may stand for no label
    assert report.of_kind("label") == ['m2/xxx-m2-l3.flac: unknown emotion "xxx"']
    assert report.of_kind("name") == ["m2/notes.flac"]


def test_a_folder_without_a_clip_of_it_is_refused(registered: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the theatre corpus: looked for f1/dis-f1-b1.flac"):
        prepare("theatre", tmp_path, tmp_path / "m.jsonl")


def test_installed_packages_add_corpora_by_entry_points(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_corpus.py").write_text(
        "from aligncap.data.corpora import Corpus\n"
        '@Corpus("theirs", "gio-f1-b1.flac")\n'
        "def read(folder):\n"
        '    for path, name in folder.match("gio-.*"):\n'
        '        yield folder.clip(path, emotion="joy")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_corpora", dict(registry._corpora))
    point = EntryPoint("theirs", "their_corpus", "aligncap.corpora")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    prepare("theirs", folder, tmp_path / "m.jsonl")
    (clip,) = read_manifest(tmp_path / "m.jsonl")
    assert (clip.corpus, clip.emotion) == ("theirs", "happy")  # without a map, labels' aliases are understood
