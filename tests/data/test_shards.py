"""Tar shards: what lies in them is read like any file, and what is wrong with them is said."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aligncap.audio import members
from aligncap.audio.files import AudioError, check, info, load_audio, read_bytes
from aligncap.audio.members import is_there, member_of, read_member, size_of
from aligncap.cli import main
from aligncap.data import clip_files, hashes
from aligncap.data.clip_files import Locator, audio_files
from aligncap.data.manifest import Utterance, audio_path, read_manifest, write_manifest
from aligncap.data.rows import open_manifest
from aligncap.data.validate import validate
from aligncap.evaluation.report.html import attach_audio
from aligncap.preferences.judges import Item, human
from aligncap.utils.distributed import Group
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import file_sha256

NAMES = ("one", "two.b", "three/é", "4", "five", "six")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six files of several formats."""
    folder = tmp_path_factory.mktemp("plain")
    utterances = []
    for i, name in enumerate(NAMES):
        file = f"{i}.{('wav', 'flac', 'WAV')[i % 3]}"
        time = np.arange(4000 + 800 * i) / 16_000
        (folder / "audio").mkdir(exist_ok=True)
        soundfile.write(folder / "audio" / file, 0.3 * np.sin(2 * np.pi * (200 + 40 * i) * time), 16_000)
        u = Utterance(name, "audio", file, "c", speaker=f"c-{i // 2}", captions=["Très sad."], extra={"n": i})
        utterances.append(replace(u, sha256=file_sha256(folder / "audio" / file)))
    write_manifest(folder / "m.jsonl", utterances)
    return folder / "m.jsonl"


@pytest.fixture(scope="module")
def made(plain: Path) -> Path:
    """The same in shards of two clips or so."""
    assert main(["shard", str(plain), "--out", str(plain.parent / "made"), "--size", "12KB"]) == 0
    return plain.parent / "made"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy of the shards, with their times, to be broken; its manifest."""
    shutil.copytree(made, tmp_path / "s")
    return tmp_path / "s" / "m.jsonl"


def errors_of(manifest: Path) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        audio_files(manifest, open_manifest(manifest))
    return caught.value.errors


def test_other_users_may_read_the_folder(made: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert made.stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_layout_is_that_of_webdataset(plain: Path, made: Path) -> None:
    utterances, rows, members = read_manifest(plain), read_manifest(made / "m.jsonl"), []
    for shard in sorted(made.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members += [(tar.extractfile(m).read(), m) for m in tar]  # type: ignore[union-attr]
    keys = [m.name.partition(".") for _, m in members]
    assert [key for key, *_ in keys[::2]] == [key for key, *_ in keys[1::2]]
    assert [key for key, *_ in keys[::2]] == ["one", "000000002", "000000003", "000000004", "five", "six"]
    assert [end for *_, end in keys[::2]] == ["wav", "flac", "wav"] * 2
    assert {end for *_, end in keys[1::2]} == {"json"} and {m.mtime for _, m in members} == {0}
    for u, row, (data, head), (said, _) in zip(utterances, rows, members[::2], members[1::2], strict=True):
        assert data == audio_path(plain, u).read_bytes() and row.audio.endswith(head.name)
        assert row.audio == f"{row.audio[:10]}/{head.offset_data}+{head.size}/{head.name}"
        own = {k: v for k, v in json.loads(said).items() if k not in ("bytes", "sha256")}
        assert own == {"id": u.id, "corpus": "c", "language": "en", "speaker": u.speaker,
                       "captions": ["Très sad."], "extra": u.extra}  # fmt: skip
        assert replace(row, root="audio", audio=u.audio, bytes=None) == u and row.bytes == len(data)
    index = json.loads((made / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and len(index["shardlist"]) > 1
    for listed in index["shardlist"]:
        path = made / listed["url"]
        assert listed["sha256"] == file_sha256(path) and listed["filesize"] == path.stat().st_size
    assert sum(listed["nsamples"] for listed in index["shardlist"]) == len(rows)


def test_equal_clips_give_equal_shards(plain: Path, made: Path, tmp_path: Path) -> None:
    assert main(["shard", str(plain), "--out", str(tmp_path / "again"), "--size", "12KB"]) == 0
    for path in made.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_member_is_read_like_its_file(plain: Path, made: Path) -> None:
    pairs = zip(read_manifest(plain), read_manifest(made / "m.jsonl"), strict=True)
    for u, row in pairs:
        file, member = audio_path(plain, u), audio_path(made / "m.jsonl", row)
        assert np.array_equal(load_audio(file), load_audio(member)) and info(file) == info(member)
        assert read_bytes(member)[0] == file.read_bytes() and check(member) == []
        assert is_there(member) and size_of(member) == file.stat().st_size
        assert member.suffix == file.suffix.lower()
    assert (
        audio_files(plain, open_manifest(plain))[0]
        == audio_files(made / "m.jsonl", open_manifest(made / "m.jsonl"))[0]
    )
    assert validate(made / "m.jsonl").errors == []


def test_a_start_looks_once_at_a_shard_and_reads_none(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: Counter[str] = Counter()
    stat = os.stat

    def counted(path: object, **more: object) -> os.stat_result:
        looked[str(path)] += 1
        return stat(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_files.os, "stat", counted)
    monkeypatch.setattr(clip_files, "hashes_of", None)
    keys, paths = audio_files(made / "m.jsonl", open_manifest(made / "m.jsonl"))
    assert len(keys) == 6 and {Path(p).suffix for p in looked} <= {".tar", ".json", ".jsonl"}
    assert max(n for path, n in looked.items() if path.endswith(".tar")) == 1


def test_a_copied_folder_is_hashed_once_by_the_shard(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(hashes, "file_sha256", lambda path: read.append(Path(path).name) or file_sha256(path))
    tars = sorted(shards.parent.glob("*.tar"))
    for path in tars:
        os.utime(path, ns=(0, 10**18))
    keys = audio_files(shards, open_manifest(shards))[0]
    assert keys == [u.sha256 for u in read_manifest(shards)] and sorted(read) == [p.name for p in tars]
    audio_files(shards, open_manifest(shards))
    assert len(read) == len(tars)


def test_a_missing_a_cut_and_a_changed_shard_are_named_at_once(shards: Path) -> None:
    first, second, third = sorted(shards.parent.glob("*.tar"))[:3]
    first.unlink()
    os.truncate(second, second.stat().st_size - 512)
    third.write_bytes(third.read_bytes()[:-1] + b"x")
    errors = errors_of(shards)
    said = ("no such shard", "has changed since", "has changed since")
    for path, what, error in zip((first, second, third), said, errors, strict=True):
        assert f"{path}: {what}" in error and "`aligncap shard`" in error
    lines = [int(e.removeprefix(f"{shards}:").split(":")[0]) for e in errors]
    rows = [u.audio.split("/")[0] for u in read_manifest(shards)]
    assert lines == [rows.index(p.name) + 1 for p in (first, second, third)]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such index"), ("{", "is broken"), ('{"shardlist": []}', "does not name it")],
)
def test_shards_without_their_index_are_refused(shards: Path, content: str | None, words: str) -> None:
    (shards.parent / "index.json").unlink()
    if content is not None:
        (shards.parent / "index.json").write_text(content)
    assert all(words in error and "`aligncap shard`" in error for error in errors_of(shards))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        *(("gone", "no such shard"), ("cut", "cut off")),
        *(("other", "holds no one.wav"), ("folder", "is a folder")),
    ],
)
def test_what_is_wrong_with_a_shard_is_said_when_a_clip_is_read(
    shards: Path, broken: str, words: str
) -> None:
    u = read_manifest(shards)[0]
    tar = shards.parent / "000000.tar"
    load_audio(path := audio_path(shards, u))
    data = tar.read_bytes()
    tar.unlink()
    if broken == "cut":
        tar.write_bytes(data[: len(data) // 4])
    elif broken == "other":
        tar.write_bytes(data[1024:] + bytes(1024))
    elif broken == "folder":
        tar.mkdir()
    with pytest.raises(AudioError, match=words):
        load_audio(path)
    assert validate(shards).errors[0].startswith(f"{shards}:1: {tar}: ")


def test_damage_inside_a_clip_is_found_by_validate(shards: Path) -> None:
    tar, u = shards.parent / "000000.tar", read_manifest(shards)[0]
    member = member_of(u.audio)
    assert member is not None
    with tar.open("r+b") as file:
        file.seek(member.start + member.size - 100)
        file.write(b"damage")
    (error,) = validate(shards).errors
    assert error.startswith(f"{shards}:1: ") and "sha256 differs" in error


def test_no_member_leads_out_of_its_root(shards: Path, tmp_path: Path) -> None:
    row = read_manifest(shards)[0]
    inside, rest = row.audio.split("/", 1)
    shutil.copy(shards.parent / inside, tmp_path / "outside.tar")
    (shards.parent / "link.tar").symlink_to(tmp_path / "outside.tar")
    for audio in (f"../outside.tar/{rest}", f"{tmp_path}/outside.tar/{rest}", f"link.tar/{rest}"):
        with pytest.raises(UserError, match="outside root"):
            audio_path(shards, replace(row, audio=audio))
    below = audio_path(shards, replace(row, audio=f"{inside}/{rest.split('/')[0]}/.."))
    with pytest.raises(AudioError, match=r"holds no \.\."):
        load_audio(below)


def test_what_cannot_be_put_into_shards_is_named_and_nothing_is_left(plain: Path, tmp_path: Path) -> None:
    utterances = read_manifest(plain)
    rows = [replace(u, root=str(plain.parent / "audio")) for u in utterances[:2]]
    rows += [replace(rows[0], id="gone", audio="gone.wav"), replace(rows[0], id="other", sha256="0" * 64)]
    write_manifest(path := tmp_path / "m.jsonl", rows)
    with pytest.raises(UserErrors) as caught:
        from aligncap.data.shards import ShardConfig, run_shard

        run_shard(ShardConfig(manifest=str(path), out=str(tmp_path / "out")))
    assert [line.split(": ")[0] for line in caught.value.errors] == [f"{path}:3", f"{path}:4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl"]


def test_a_folder_with_something_in_it_is_refused(
    plain: Path, made: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["shard", str(plain), "--out", str(made)]) == 2 and "not empty" in capsys.readouterr().err
    assert main(["shard", str(plain), "--out", str(made / "x"), "--size", "big"]) == 2
    assert "size=big" in capsys.readouterr().err


def test_rows_in_shards_are_split_and_joined_like_others(made: Path, tmp_path: Path) -> None:
    assert main(["split", str(made / "m.jsonl"), "--dev", "1", "--test", "1", "--out", str(tmp_path)]) == 0
    parts = [tmp_path / f"{name}.jsonl" for name in ("test", "train", "dev")]
    assert main(["join", *map(str, parts), "--out", str(tmp_path / "deep" / "all.jsonl")]) == 0
    joined = read_manifest(tmp_path / "deep" / "all.jsonl")
    keys, paths = audio_files(tmp_path / "deep" / "all.jsonl", open_manifest(tmp_path / "deep" / "all.jsonl"))
    assert sorted(keys) == sorted(u.sha256 for u in read_manifest(made / "m.jsonl"))
    assert all(len(load_audio(paths[key])) for key in keys) and len(joined) == 6


@pytest.mark.parametrize("name", ["plain", "made"])
def test_processes_share_the_look_at_files(name: str, plain: Path, made: Path) -> None:
    manifest = plain if name == "plain" else made / "m.jsonl"
    utterances = open_manifest(manifest)
    path_of = Locator(manifest, utterances)
    whole = clip_files._look(path_of, utterances.columns, Group())
    parts = [clip_files._look(path_of, utterances.columns, Group(rank, 3)) for rank in range(3)]
    for kind in ("doubtful", "shards"):
        found = [getattr(part, kind) for part in parts]
        assert sum(map(len, found)) == len(getattr(whole, kind))
        assert {k: v for part in found for k, v in part.items()} == getattr(whole, kind)


def test_the_report_plays_what_lies_in_shards(made: Path, plain: Path, tmp_path: Path) -> None:
    pairs = list(zip(read_manifest(plain), read_manifest(made / "m.jsonl"), strict=True))
    for how in ("embed", "link", "copy"):
        rows = [{"utterance": row} for _, row in pairs]
        attach_audio(rows, tmp_path, made / "m.jsonl", how)  # type: ignore[arg-type]
        for row, (u, _) in zip(rows, pairs, strict=True):
            content = audio_path(plain, u).read_bytes()
            if how == "embed":
                assert base64.b64decode(str(row["source"]).partition(",")[2]) == content
            else:  # nothing can link into a tar
                assert (tmp_path / str(row["source"])).read_bytes() == content


def test_a_sheet_for_people_plays_what_lies_in_shards(made: Path, plain: Path) -> None:
    row, u = read_manifest(made / "m.jsonl")[0], read_manifest(plain)[0]
    item = Item("one", "He sounds sad.", "candidate", 0, (), row, made / "m.jsonl")
    assert base64.b64encode(audio_path(plain, u).read_bytes()).decode() in human._page([[item]], 0)


def test_threads_that_open_one_shard_at_the_same_time_all_read_it(made: Path) -> None:
    """Of two that open it at once the cache keeps one file, and the other must live as long as its read."""
    paths = [str(audio_path(made / "m.jsonl", u)) for u in read_manifest(made / "m.jsonl")]
    wanted = [read_member(member_of(path)) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            members._opened.cache_clear()
            found = list(pool.map(lambda path: read_member(member_of(path)), paths * 4))
            assert found == wanted * 4
