"""A manifest whose rows stay in its file: the same rows and the same errors as one read whole."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligncap.data import columns as columns_module
from aligncap.data import manifest as manifests
from aligncap.data.clip_files import audio_files
from aligncap.data.columns import columns_of, manifest_columns
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.data.provenance import manifests_provenance
from aligncap.data.rows import Manifest, open_manifest
from aligncap.data.split import balanced
from aligncap.training.responses import spelling
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import json_line


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "root": ".", "audio": f"{name}.wav", "corpus": "c", **fields}


def manifest(tmp_path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (path := tmp_path / "m.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manifest is a large one."""
    monkeypatch.setattr(columns_module, "KEEP_BYTES", 0)


GOOD = [
    row("a", captions=["Sad.", "她很伤心。"], p_act=["x", "y"], emotion="sad", duration=3, cues={"f0": 2}),
    "",
    row(
        "b", transcript="\u2028", speaker="s", sha256="ab" * 32, bytes=3, extra={"samples_sha256": "cd" * 32}
    ),
    '{"id": "c", "root": ".", "audio": "c.wav", "corpus": "d", "speaker": null, "transcript": "\\ud83d"}',
    row("d", captions=["4"], instructions=["How old?"], extra={"samples_sha256": "odd", "n": [1, None]}),
]
BROKEN = [
    row("a"), '{"id": "b",', row("c", captons=["x"]), row("d", duration="long"), "[1]",
    {"id": "e", "root": "."}, row("f", cues={"x": True}), '{"id": "g", "duration": NaN}', row("a"),
    row("h", emotion="hapy"),
    row("i", captions=["x", " "], clues=[["x"]]), '{"id": "j", "extra": {"x": Infinity}}',
    row("k", captions=["x"], instructions=["x", "y"]), row("l", bytes=10**30), row("a"),
]  # fmt: skip


def test_rows_read_one_by_one_are_those_of_the_whole_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, *GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    whole, lazy = read_manifest(path), open_manifest(path)
    assert list(lazy) == whole == [lazy[i] for i in range(4)] == lazy[:] and len(lazy) == 4
    assert lazy[-1] == whole[-1] and list(reversed(lazy)) == whole[::-1]
    assert isinstance(lazy[0].duration, int) and isinstance(lazy[0].cues["f0"], int)  # as they were written
    assert list(pickle.loads(pickle.dumps(lazy))) == whole
    with pytest.raises(IndexError):
        lazy[4]


@pytest.mark.parametrize("places", [[3, 1, 1, 0], [0, 1, 2, 3], [2, 2, 2], []])
def test_chosen_rows_stand_in_the_order_they_were_chosen_in(tmp_path: Path, places: list[int]) -> None:
    lazy = open_manifest(manifest(tmp_path, *GOOD))
    chosen = lazy.chosen(places)
    assert [u.id for u in chosen] == [chosen[i].id for i in range(len(places))] == ["abcd"[i] for i in places]
    assert [u.id for u in chosen.chosen(range(len(places))[::-1])] == ["abcd"[i] for i in places[::-1]]
    assert chosen.columns.captions.tolist() == [len(u.captions) for u in chosen]


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_rows_in_their_order_are_read_in_blocks(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligncap.data.rows._BLOCK", block)
    path = manifest(tmp_path, *(row(f"u{i}", transcript="x" * (i * 7 % 50)) for i in range(100)))
    assert list(open_manifest(path)) == read_manifest(path)


BITS = rb"""" \ { } [ ] , : 1e999 -0 0 1E5 null true \ud800 \u0041 "id":"b", 1.0 NaN "x":1,""".split()
BITS += [b'"duration":1,']
BITS += [b" ", b"\t", b"\x0c", b"\xff", b"\xef\xbb\xbf", b'"duration":"1",', b""]


def test_a_line_is_read_at_once_as_it_is_field_by_field() -> None:
    """Lines with something put in or taken out, most of them broken: the fast reader accepts no more."""
    draw, accepted = random.Random(0), 0
    whole = [
        json.dumps({**r, "bytes": 1, "clues": [["x"]]}, ensure_ascii=False).encode()
        for r in GOOD
        if isinstance(r, dict)
    ]
    for _ in range(2000):
        line = bytearray(draw.choice(whole))
        at = draw.randrange(len(line))
        line[at : at + draw.choice([0, 0, 1, 2])] = draw.choice(BITS)
        utterance, errors = manifests._checked(bytes(line), 2)
        row = json_line(bytes(line), 2, numbers_only=True)
        assert repr((utterance, errors)) == repr(
            (None, [row]) if isinstance(row, str) else manifests._utterance(row)
        )
        if utterance is not None and not errors:
            accepted += 1
            assert repr(manifests.utterance_of(bytes(line))) == repr(utterance)
    assert 100 < accepted < 1900


@pytest.mark.parametrize("large", [False, True])
def test_errors_are_those_of_the_whole_manifest_in_the_order_of_lines(
    tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "KEEP_BYTES", 0 if large else 1 << 30)
    path = manifest(tmp_path, *BROKEN)
    with pytest.raises(UserErrors) as whole:
        read_manifest(path)
    for _ in range(2):  # the second time from disk, where it is large
        with pytest.raises(UserErrors) as lazy:
            open_manifest(path)
        assert lazy.value.errors == whole.value.errors
    assert len(whole.value.errors) > len(BROKEN) - 2


@pytest.mark.usefixtures("kept")
def test_the_columns_of_a_large_manifest_are_kept_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = manifest(tmp_path, *GOOD), []
    lines = columns_module.manifest_lines
    monkeypatch.setattr(columns_module, "manifest_lines", lambda path: reads.append(path) or lines(path))
    first, second = manifest_columns(path), manifest_columns(path)
    assert len(reads) == 1 and (tmp_path / ".m.jsonl.index").is_dir()
    for name in columns_module._ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name == "seconds"), name
    assert first.names == second.names == columns_of(read_manifest(path)).names
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(row("e")) + "\n", encoding="utf-8")
    assert len(open_manifest(path)) == 5 and len(reads) == 2
    (tmp_path / ".m.jsonl.index" / "audio.npy").write_bytes(b"torn")  # by a kill
    assert len(open_manifest(path)) == 5 and len(reads) == 3


@pytest.mark.usefixtures("kept")
def test_a_moved_manifest_tells_its_errors_by_its_new_name(tmp_path: Path) -> None:
    path = manifest(tmp_path, *BROKEN)
    for place in (path, tmp_path / "moved" / "m.jsonl"):
        with pytest.raises(UserErrors, match=f"^{place}:2: "):
            open_manifest(place)
        (tmp_path / "moved").mkdir(exist_ok=True)
        for name in ("m.jsonl", ".m.jsonl.index"):
            if (tmp_path / name).exists():
                (tmp_path / name).rename(tmp_path / "moved" / name)


OPENING = """
import sys
from aligncap.data import columns
from aligncap.data.rows import open_manifest
columns.KEEP_BYTES, lines = 0, columns.manifest_lines
columns.manifest_lines = lambda path: print("read") or lines(path)
print(len(open_manifest(sys.argv[1])))
"""


def test_of_processes_that_start_together_one_reads_the_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, *(row(f"u{i}") for i in range(2000)))
    words = [sys.executable, "-c", OPENING, str(path)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in started]
    assert sorted(said, key=len) == [["2000"], ["read", "2000"]]


def test_a_row_that_was_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    lazy = open_manifest(path := manifest(tmp_path, *GOOD))
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(UserError, match="has changed since this run began"):
        lazy[0]


def test_columns_are_what_rows_say(tmp_path: Path) -> None:
    columns = open_manifest(manifest(tmp_path, *GOOD)).columns
    assert columns.captions.tolist() == [2, 0, 0, 1] and columns.p_act.tolist() == [2, 0, 0, 0]
    assert columns.described.tolist() == [2, 0, 0, 0] and columns.chinese.tolist() == [1, 0, 0, 0]
    assert columns.seconds[0] == 3 and np.isnan(columns.seconds[1:]).all()
    assert columns.bytes.tolist() == [-1, 3, -1, -1] and columns.shard.tolist() == [-1] * 4
    assert columns.named("corpus") == ["c", "d"] and columns.named("emotion") == ["sad"]
    assert columns.path_of(2) == (".", "c.wav")
    assert columns.hashes("sha256") == {"ab" * 32} and columns.hashes("samples") == {"cd" * 32, "odd"}


def plainly_balanced(clips: list[Utterance]) -> list[int]:
    """By its definition: of a label and corpus as many as the largest label has over the label's corpora."""
    kinds = Counter((u.emotion, u.corpus) for u in clips if u.emotion)
    most = max(Counter(u.emotion for u in clips if u.emotion).values())
    corpora = Counter(label for label, _ in kinds)
    times = {k: max(1, min(4, round(most / corpora[k[0]] / n))) for k, n in kinds.items()}
    return [i for i, u in enumerate(clips) for _ in range(times.get((u.emotion, u.corpus), 1))]


def test_balance_and_provenance_are_those_of_utterances_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, corpora = ["sad", "calm", "angry", None], ["x", "y", "z"]
    clips = [
        Utterance(
            f"u{i}", ".", f"{i}.wav", str(rng.choice(corpora, p=[0.7, 0.2, 0.1])), speaker=f"s{i % 7}",
            emotion=labels[rng.choice(4, p=[0.6, 0.2, 0.05, 0.15])], sha256=f"{i:064x}" if i % 3 else None,
        )
        for i in range(300)
    ]  # fmt: skip
    write_manifest(path := tmp_path / "m.jsonl", clips)
    lazy, places = open_manifest(path), balanced(clips)
    assert balanced(lazy) == places == plainly_balanced(clips) and len(places) > 300
    found = manifests_provenance([path])
    assert found.clips == {u.sha256 for u in clips if u.sha256} and found.unhashed == set(corpora)
    assert found.speakers == {f"{u.corpus}/{u.speaker}" for u in clips}


@pytest.mark.parametrize(
    "line",
    [
        '"<|end|> x"',
        '"\\u003c|end|>"',
        '"<\\u007Cend|>"',
        '"a <\\/s>"',
        '"<\\uff5cx>"',
        '"<｜x>"',
        '"\\ud83d\\ude00"',
    ],
)
def test_however_json_spells_a_control_token_its_line_is_found(line: str) -> None:
    tokens = ["<|end|>", "</s>", "<｜x>", "😀"]
    assert any(token in json.loads(line) for token in tokens)
    assert spelling(tokens).search(line.encode())
    assert not spelling(tokens).search('"He said so, <loudly>, in Köln"'.encode())


def test_keys_and_paths_are_those_of_lists_and_dicts(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):  # a and c hold the same
        (tmp_path / f"{name}.wav").write_bytes(content)
    keys, paths = audio_files(path := manifest(tmp_path, row("a"), row("b"), row("c")), open_manifest(path))
    assert len(set(keys)) == 2 == len(paths) and keys[0] == keys[2] and list(paths) == [keys[0], keys[1]]
    assert paths[keys[1]] == tmp_path / "b.wav" and paths[keys[0]] == tmp_path / "c.wav"
    assert "0" * 64 not in paths and "no hash" not in paths and keys.chosen([1]) == [keys[1]]
    with pytest.raises(KeyError):
        paths["0" * 64]
    again = pickle.loads(pickle.dumps(paths))  # as a worker process of a loader gets it
    assert dict(again) == dict(paths)


def test_a_missing_file_and_one_outside_its_root_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    path = manifest(tmp_path, row("a"), row("gone"), row("out", audio="../x.wav"))
    with pytest.raises(UserErrors) as caught:
        audio_files(path, open_manifest(path))
    first, second = caught.value.errors
    assert "gone.wav: no such file" in first and "out: '../x.wav' lies outside root" in second


def test_links_within_the_root_are_followed_and_others_refused(tmp_path: Path) -> None:
    for name in ("root/in/a.wav", "b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "root/in/inside.wav").symlink_to("a.wav")
    (tmp_path / "root/in/outside.wav").symlink_to(tmp_path / "b.wav")
    (tmp_path / "root/up").symlink_to(tmp_path)
    names = ("in/a.wav", "in/inside.wav", "in/a.wav/..", "in/outside.wav", "in/../in/a.wav", "up/b.wav", "in")
    path = manifest(tmp_path, *(row(f"u{i}", root="root", audio=name) for i, name in enumerate(names)))
    lazy = open_manifest(path)
    for _ in range(2):  # also with what was remembered of folders
        with pytest.raises(UserErrors) as caught:
            audio_files(path, lazy)
        told = [
            error.rpartition(": ")[2][:15] if "no such" in error else "outside"
            for error in caught.value.errors
        ]
        assert told == ["no such file", "outside", "outside", "no such file"]
    _, paths = audio_files(path, lazy.chosen([0, 1, 4]))
    assert list(paths.values()) == [tmp_path / "root/in/a.wav"]


def test_a_manifest_without_a_folder_that_can_be_written_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: None
) -> None:
    path = manifest(tmp_path, *GOOD)
    monkeypatch.setenv("ALIGNCAP_HOME", str(tmp_path / "home"))
    (tmp_path / ".m.jsonl.index").write_text("a file, where a folder would be")
    (tmp_path / ".m.jsonl.index.lock").mkdir()
    assert [u.id for u in open_manifest(path)] == ["a", "b", "c", "d"]
    assert [p.is_dir() for p in (tmp_path / "home" / "index").iterdir()] == [True]
    assert Manifest(path, manifest_columns(path))[0] == read_manifest(path)[0]
