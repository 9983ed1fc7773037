import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.data.split import choose_evenly
from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import sample_captions
from aligncap.preferences import candidates
from aligncap.preferences.candidates import CandidatesConfig
from aligncap.preferences.judges import read_items
from aligncap.utils.errors import UserError
from aligncap.utils.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


def write_candidates(model, manifest, out, **options):
    config = CandidatesConfig(model=str(model), manifest=str(manifest), out=str(out), **options)
    return candidates.write_candidates(config)


OPTIONS = {"num": 3, "max_new_tokens": 6, "batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(folder)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_in_the_manifests_order_and_say_what_made_them(model, manifest, tmp_path):
    out = tmp_path / "deep" / "c.jsonl"
    rows, errors = write_candidates(model, manifest, out, seed=4, **OPTIONS)
    assert not errors and lines(out) == rows and list(out.parent.iterdir()) == [out]
    assert [(r["id"], r["candidate"]) for r in rows] == [(f"clip{i}", n) for i in range(8) for n in range(3)]
    row = rows[0]
    assert (out.parent / row["manifest"]).resolve() == manifest.resolve()
    assert row | {"caption": "", "manifest": ""} == {
        "id": "clip0",
        "audio": "clip0.wav",
        "candidate": 0,
        "caption": "",
        "model": str(model),
        "seed": 4,
        "settings": {
            "num": 3,
            "temperature": 0.7,
            "top_p": 0.95,
            "max_new_tokens": 6,
            "dtype": "float32",
        },
        "manifest": "",
    }
    assert len(read_items(out)) == len(rows)  # the next stage reads it


def test_candidates_are_those_of_the_clip_alone(model, manifest, tmp_path):
    from aligncap.audio.files import load_audio

    rows, _ = write_candidates(model, manifest, tmp_path / "c.jsonl", **OPTIONS)
    alone = sample_captions(
        Captioner.from_pretrained(model, device="cpu"),
        [load_audio(manifest.parent / "clip5.wav")],
        ["clip5"],
        num=3,
        temperature=0.7,
        top_p=0.95,
        seed=0,
        max_new_tokens=6,
    )
    assert [r["caption"] for r in rows if r["id"] == "clip5"] == alone[0]


def test_a_killed_run_goes_on_and_gives_the_same_file(model, manifest, tmp_path, monkeypatch):
    whole, _ = write_candidates(model, manifest, tmp_path / "whole.jsonl", **OPTIONS)
    calls = []

    def dying(captioner, clips, ids, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(ids)
        return sample_captions(captioner, clips, ids, **options)

    monkeypatch.setattr(candidates, "sample_captions", dying)
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_candidates(model, manifest, out, **OPTIONS)
    assert not out.exists()
    partial = tmp_path / "out.jsonl.partial"
    with partial.open("ab") as file:
        file.write(b'{"key": "clip9", "row": ["tor\xc3')  # a kill in mid-line, in mid-letter
    first = calls.copy()
    calls.clear()
    rows, _ = write_candidates(model, manifest, out, **OPTIONS)
    assert len(calls) == 2 and not {i for ids in calls for i in ids} & {i for ids in first for i in ids}
    assert [r["caption"] for r in rows] == [r["caption"] for r in whole]
    assert not partial.exists()


def test_a_run_of_other_settings_begins_again(model, manifest, tmp_path):
    out = tmp_path / "c.jsonl"
    for settings in ({"seed": 1}, {"seed": 2}):
        journal = Journal(tmp_path / "c.jsonl", settings)
        journal.write({"clip0": ["stale"]})
        journal.close(done=False)
    rows, _ = write_candidates(model, manifest, out, **OPTIONS)
    assert "stale" not in [r["caption"] for r in rows] and len(rows) == 24


def test_bad_audio_is_reported_and_the_rest_done(model, manifest, tmp_path):
    utterances = read_manifest(manifest)[:4]
    for u in utterances:
        (tmp_path / u.audio).write_bytes((manifest.parent / u.audio).read_bytes())
    (tmp_path / "clip1.wav").write_bytes(b"no sound")
    (tmp_path / "clip2.wav").unlink()
    write_manifest(tmp_path / "m.jsonl", utterances)
    rows, errors = write_candidates(model, tmp_path / "m.jsonl", tmp_path / "c.jsonl", **OPTIONS)
    assert {r["id"] for r in rows} == {"clip0", "clip3"}
    assert [name in error for name, error in zip(("clip1.wav", "clip2.wav"), errors)] == [True, True]


def test_a_limit_keeps_emotions_balanced_and_a_larger_one_adds_to_it():
    emotions = ["angry"] * 50 + ["sad"] * 20 + ["calm"] * 3 + [None] * 10
    utterances = [Utterance(f"{i}", ".", "a.wav", "made", emotion=e) for i, e in enumerate(emotions)]

    def balanced(clips: list[Utterance], limit: int, seed: int) -> list[Utterance]:
        return [clips[i] for i in choose_evenly(clips, limit, seed)]

    few, more = balanced(utterances, 12, seed=0), balanced(utterances, 30, seed=0)
    assert Counter(u.emotion for u in few) == {"angry": 3, "sad": 3, "calm": 3, None: 3}
    assert {u.id for u in few} < {u.id for u in more} and len(more) == 30
    assert [int(u.id) for u in more] == sorted(int(u.id) for u in more)
    assert balanced(utterances, 12, seed=0) == few != balanced(utterances, 12, seed=1)
    assert balanced(utterances, 1000, seed=0) == utterances


def test_limited_runs_write_that_many_clips(model, manifest, tmp_path):
    rows, _ = write_candidates(model, manifest, tmp_path / "c.jsonl", limit=4, **OPTIONS)
    labels = {u.id: u.emotion for u in read_manifest(manifest)}
    assert Counter(labels[r["id"]] for r in rows) == {"angry": 6, "calm": 6}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"num": 0}, "num=0"),
        ({"temperature": 0}, "the same"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"limit": 0}, "limit=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "int8"}, "bfloat16"),
    ],
)
def test_settings_out_of_range_are_refused(model, manifest, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        write_candidates(model, manifest, tmp_path / "c.jsonl", **(OPTIONS | wrong))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_a_users_error(model, manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_candidates(model, manifest, tmp_path / "file" / "c.jsonl", **OPTIONS)


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(model, manifest, tmp_path):
    one, _ = write_candidates(model, manifest, tmp_path / "one.jsonl", **OPTIONS)
    utterances = read_manifest(manifest)
    utterances.append(Utterance("gone", str(tmp_path), "gone.wav", "made"))
    for u in utterances[:-1]:
        u.root = str(manifest.parent)
    write_manifest(tmp_path / "m.jsonl", utterances)
    out = tmp_path / "two.jsonl"
    script = tmp_path / "share.py"
    script.write_text(
        "import json, os, torch\n"
        "from aligncap.preferences.candidates import CandidatesConfig, write_candidates\n"
        "torch.set_num_threads(1)\n"
        f"files = dict(model={str(model)!r}, manifest='m.jsonl', out='two.jsonl')\n"
        f"rows, errors = write_candidates(CandidatesConfig(**files, **{OPTIONS!r}))\n"
        "print(f\"process {os.environ['RANK']}: {len(rows)} rows, {errors}\")\n"
    )
    # A part that an older run of other settings left behind.
    journal = Journal(out, {"of": "other settings"}, part=1)
    journal.write({"clip0": ["stale"]})
    journal.close(done=False)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch"]
        + ["--config_file", str(ROOT / "configs/accelerate/cpu2.yaml"), str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("process"))
    assert [line.split(":")[0] for line in said] == ["process 0", "process 1"]
    assert all("24 rows" in line and "gone.wav" in line for line in said)
    assert [(r["id"], r["candidate"], r["caption"]) for r in lines(out)] == [
        (r["id"], r["candidate"], r["caption"]) for r in one
    ]
    # a clip could not be read: what is done stays for the command that is given again
    assert (tmp_path / "two.jsonl.partial").exists()


def test_a_long_clip_is_reported(model, tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(31 * 16_000) / 10), 16_000)
    write_manifest(tmp_path / "m.jsonl", [Utterance("long", ".", "long.wav", "made")])
    rows, errors = write_candidates(model, tmp_path / "m.jsonl", tmp_path / "c.jsonl", **OPTIONS)
    assert rows == [] and "long.wav" in errors[0]


def test_without_a_limit_the_captions_may_be_as_long_as_those_of_training(tiny, manifest, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_response_tokens": 5}))
    options = {name: value for name, value in OPTIONS.items() if name != "max_new_tokens"}
    rows, _ = write_candidates(tmp_path / "model", manifest, tmp_path / "c.jsonl", limit=1, **options)
    assert rows[0]["settings"]["max_new_tokens"] == 5
