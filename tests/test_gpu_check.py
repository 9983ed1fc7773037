"""scripts/gpu_check.sh: what is carried to a bare machine is enough; its table can be made without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from bare_site import PREFERENCES, TABLES, WHEELS, closure, make_bare

ROOT = Path(__file__).resolve().parents[1]
TRAINING = "teacher sft distill".split()


def bare_python(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The Python of `make_bare`, with what is carried and with ours."""
    path = f"{ROOT}:{python.parents[1] / 'carried'}"
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [str(word) for word in (python, *words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_bare(tmp_path_factory.mktemp("bare") / "site")


def test_training_candidates_and_captions_import_no_more_than_is_carried(tmp_path):
    """Without trl, datasets, pandas and pyarrow, too, all but dpo is there."""
    folder = make_bare(tmp_path / "site", ())
    names = [f"aligncap.training.{name}" for name in TRAINING]
    names += ["aligncap.preferences.candidates", "aligncap.inference.captioner", "aligncap.cli"]
    done = bare_python(folder, "-c", f"import {', '.join(names)}")
    assert done.returncode == 0, done.stderr[-2000:]
    done = bare_python(folder, "-c", "import scipy")  # it is a bare machine indeed
    assert "No module named 'scipy'" in done.stderr


def test_preferences_import_no_more_than_is_carried(whole):
    done = bare_python(whole, "-c", "import aligncap.training.dpo")
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_carried_is_pinned_and_not_there_already():
    from bare import pinned

    assert all("==" in line for line in pinned((*WHEELS, *PREFERENCES)))
    there = closure(("torch", "accelerate"))
    assert not there & {name.lower() for name in (*WHEELS, *PREFERENCES, *TABLES)} - {"transformers"}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--minute", "3"], "unknown option --minute"), (["--minutes", "soon"], "a number is needed")],
)
def test_wrong_options_end_at_once(words, message):
    done = subprocess.run(["bash", ROOT / "scripts/gpu_check.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_help_is_what_the_script_says_of_itself():
    done = subprocess.run(["bash", ROOT / "scripts/gpu_check.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--wheels DIR" in done.stdout and "#" not in done.stdout


def row(way: str, **more: object) -> dict[str, object]:
    return {"size": "S", "seconds": 5.0, "stage": "distill", "batch": 8, "precision": "p", "rate": 1e12} | {
        "way": way, "step": 0.5, "tokens": 100.0, "peak": 2**30, "rival": "", "waits": 3, **more,
    }  # fmt: skip


def test_the_table_tells_ratios_failures_and_what_was_left_out():
    from gpu import table

    ways = [row("theirs"), row("ours", step=0.2, rival="theirs", mfu=0.5, formula=2**31), row("whole")]
    text = table([*ways, row("large", error="out of memory: 9 GiB")], ["S, 29 s, dpo: no time was left"])
    assert "| ours | 0.2 | 100 |  | 50.0% | 1.00 | 2.00 | 2.50 | 3 |" in text
    assert "| large | out of memory: 9 GiB |" in text and "- S, 29 s, dpo: no time was left" in text
    assert "whole" not in text


def test_rows_cut_short_by_a_kill_and_of_other_devices_are_not_read(tmp_path):
    from gpu import append, device_name, read

    file = tmp_path / "gpu.jsonl"
    append(file, {"device": device_name(), "way": "a"})
    append(file, {"device": "another", "way": "b"})
    with file.open("a") as rest:
        rest.write('{"device": "')
    assert [found["way"] for found in read(file)] == ["a"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_check_runs_at_tiny_shapes_on_a_bare_machine(whole, tmp_path):
    """Twice: the second call measures nothing anew."""
    words = ("scripts/benchmarks/gpu.py", "run", "--tiny", "--minutes", "9", "--out", tmp_path)
    done = bare_python(whole, *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    ways = {found["way"] for found in rows}
    assert {"teacher", "distill, live", "distill, cached", "distill, top-k", "ultravox's layout"} <= ways
    assert {"dpo, shared", "dpo, plain", "trl's DPO", "captions, greedy", "candidates, 8 a clip"} <= ways
    assert all(found.get("step", 1) > 0 and "error" not in found for found in rows)
    again = bare_python(whole, *words)
    assert again.returncode == 0 and "tiny Llama, 1 s, distill\n" not in again.stdout
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(rows)
    assert "| distill, cached |" in (tmp_path / "gpu.md").read_text()
