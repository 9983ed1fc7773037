"""A start of training reads no sound file that has not changed, and never takes a changed one for the old."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aligncap.data import hashes
from aligncap.data.clip_files import audio_files
from aligncap.data.corpora import prepare
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.data.validate import validate
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import file_sha256


def tone(path: Path, hertz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(4000) / 16_000), 16_000)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A manifest as `prepare` writes it."""
    for number, letter in enumerate("FWL"):
        tone(tmp_path / "corpus" / f"03a01{letter}a.wav", 200 + 50 * number)
    prepare("emodb", tmp_path / "corpus", tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


@pytest.fixture
def copied(prepared: Path) -> Path:
    """A manifest whose files have other times, as after copying the corpus."""
    for path in prepared.parent.glob("corpus/*.wav"):
        os.utime(path, ns=(0, 10**18))
    return prepared


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many times each file is hashed."""
    calls: Counter[str] = Counter()

    def counting(path: str) -> str:
        calls[Path(path).name] += 1
        return file_sha256(path)

    monkeypatch.setattr(hashes, "file_sha256", counting)
    return calls


def start(manifest: Path) -> list[str]:
    keys, paths = audio_files(str(manifest), read_manifest(manifest))
    assert all(paths[key].is_file() for key in keys)
    return keys


def rewrite(path: Path, *, keep_time: bool) -> None:
    """Another content of the same size."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-400:] = bytes(400)
    path.write_bytes(content)
    assert path.stat().st_size == before.st_size
    later = before.st_mtime_ns + (0 if keep_time else 1)
    os.utime(path, ns=(before.st_atime_ns, later))


def test_a_prepared_corpus_is_not_read_at_all(prepared: Path, hashed: Counter[str]) -> None:
    assert start(prepared) == [u.sha256 for u in read_manifest(prepared)]
    assert not hashed and sorted(p.name for p in prepared.parent.iterdir()) == ["corpus", "m.jsonl"]


def test_a_copied_corpus_is_read_at_the_first_start_only(copied: Path, hashed: Counter[str]) -> None:
    keys = start(copied)
    assert set(hashed.values()) == {1} and len(hashed) == 3
    assert start(copied) == keys == [u.sha256 for u in read_manifest(copied)]
    assert set(hashed.values()) == {1}
    os.utime(copied.parent / "corpus" / "03a01Fa.wav")
    assert start(copied) == keys and hashed["03a01Fa.wav"] == 2 and hashed["03a01Wa.wav"] == 1


def test_an_older_manifest_without_sizes_or_hashes_is_read_once(prepared: Path, hashed: Counter[str]) -> None:
    utterances = read_manifest(prepared)
    keys = [str(u.sha256) for u in utterances]
    for u in utterances:
        u.bytes = u.mtime_ns = None
    utterances[1].sha256 = None
    write_manifest(prepared, utterances)
    assert start(prepared) == start(prepared) == keys
    assert set(hashed.values()) == {1} and len(hashed) == 3


@pytest.mark.parametrize("when", ["at once", "after a start"])
def test_a_changed_file_of_equal_size_is_found_by_its_time(copied: Path, when: str) -> None:
    if when == "after a start":
        start(copied)
    rewrite(copied.parent / "corpus" / "03a01Wa.wav", keep_time=False)
    for _ in range(2):  # what was hashed is remembered, and so is that it is another file
        with pytest.raises(UserErrors, match="03a01Wa.wav: has changed since `aligncap prepare`") as caught:
            start(copied)
        assert len(caught.value.errors) == 1


def test_a_file_of_another_size_is_refused_unread(prepared: Path, hashed: Counter[str]) -> None:
    path = prepared.parent / "corpus" / "03a01Wa.wav"
    times = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserErrors, match="03a01Wa.wav: has changed"):
        start(prepared)
    assert not hashed


def test_validate_finds_a_changed_file_of_equal_size_and_time(prepared: Path) -> None:
    assert validate(prepared).errors == []
    rewrite(prepared.parent / "corpus" / "03a01Wa.wav", keep_time=True)
    start(prepared)
    (error,) = validate(prepared).errors
    assert "03a01Wa.wav: not the file that the manifest was made of" in error


def test_of_processes_that_start_together_one_reads(copied: Path, hashed: Counter[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(start, [copied] * 4))
    assert found == [found[0]] * 4 and set(hashed.values()) == {1}


def test_beside_a_folder_that_cannot_be_written_the_user_s_cache_is_used(
    copied: Path, hashed: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNCAP_HOME", str(tmp_path / "home"))
    for name in (".m.jsonl.hashes", ".m.jsonl.hashes.lock"):
        (tmp_path / name).mkdir()  # no file can be opened there
    assert start(copied) == start(copied)
    assert set(hashed.values()) == {1} and list((tmp_path / "home" / "hashes").iterdir())
    monkeypatch.setenv("ALIGNCAP_HOME", str(copied))  # and where neither can be written, it is not remembered
    assert start(copied) == start(copied) and set(hashed.values()) == {3}


def test_a_line_torn_by_a_kill_is_passed_over(copied: Path, hashed: Counter[str]) -> None:
    start(copied)
    journal = copied.with_name(".m.jsonl.hashes")
    journal.write_text(journal.read_text().rstrip("\n")[:-20])
    start(copied)
    start(copied)
    assert sorted(hashed.values()) == [1, 1, 2]


opened: Counter[str] = Counter()
sys.addaudithook(lambda event, args: opened.update([str(args[0])]) if event == "open" else None)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many times each file is opened, by Python or by libsndfile."""
    plain = soundfile.SoundFile.__init__

    def counting(self: soundfile.SoundFile, file: object, *args: object, **more: object) -> None:
        opened.update([str(file)] if isinstance(file, (str, Path)) else [])
        plain(self, file, *args, **more)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", counting)
    opened.clear()
    yield opened


def test_prepare_reads_each_file_once(tmp_path: Path, opens: Counter[str]) -> None:
    for letter in "FWL":
        tone(tmp_path / "corpus" / f"03a01{letter}a.wav", 200)
    opens.clear()
    prepare("emodb", tmp_path / "corpus", tmp_path / "m.jsonl")
    assert {
        Path(name).name: count for name, count in opens.items() if name.endswith(".wav")
    } == dict.fromkeys(("03a01Fa.wav", "03a01La.wav", "03a01Wa.wav"), 1)
    clip = read_manifest(tmp_path / "m.jsonl")[0]
    file = tmp_path / "corpus" / clip.audio
    assert (clip.bytes, clip.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert clip.sha256 == file_sha256(file) and clip.duration == 0.25


def test_utterances_that_share_a_file_have_one_key(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 200)
    write_manifest(tmp_path / "m.jsonl", [Utterance(name, ".", "a.wav", "c") for name in ("one", "two")])
    keys, paths = audio_files(tmp_path / "m.jsonl", read_manifest(tmp_path / "m.jsonl"))
    assert keys[0] == keys[1] == file_sha256(tmp_path / "a.wav") and len(paths) == 1
