"""A run that was killed and resumed is the unbroken run: every step once, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from kills import Case, compare_training, kill_and_compare, training_phase, unbroken, uniform
from safetensors.torch import load_file
from tiny import make_tokenizer
from transformers import TrainerState

from aligncap.models.checkpoints import load_folder
from aligncap.training.clips import read_clips
from aligncap.training.data import CaptionRows
from aligncap.training.distill import DistillConfig, run_distill, written_by_teacher
from aligncap.training.resume import Moved, clear_remains, cut_log, is_whole, out_of_patience
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import atomic_open, read_jsonl, workplace, write_jsonl, write_text
from aligncap.utils.tensor_cache import fingerprint

STEPS = 5  # two an epoch


def options(
    out: Path, cache: Path, manifest: Path, parts: dict[str, str], **more: object
) -> dict[str, object]:
    """With every dropout on, so that random numbers count."""
    return {
        "output_dir": str(out),
        "cache_dir": str(cache),
        "train_manifest": str(manifest),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": None,
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
        "lora_dropout": 0.2,
        "projector_dropout": 0.3,
        "encoder_layer": "2",
        "projector_hidden": 24,
        "align_steps": 3,
        **parts,
    } | more


@pytest.fixture(scope="module")
def whole(tmp_path_factory, manifest, parts):
    """An unbroken run, and a function that resumes a copy of its folder."""
    place = tmp_path_factory.mktemp("whole")

    def run(out: Path, **more: object) -> Path:
        run_distill(DistillConfig(**options(out, place / "cache", manifest, parts, **more)))
        return out

    return run(place / "run"), run


@pytest.fixture
def killed(whole, tmp_path):
    """The folder of the run as if killed between a step that was saved (0: none was) and the end."""

    def copy(step: int) -> Path:
        out = tmp_path / "killed"
        shutil.copytree(whole[0], out)
        (out / "adapter_model.safetensors").unlink()
        for path in out.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        return out

    return copy


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_jsonl(out / "log.jsonl") if "loss" in row]


def same(out: Path, other: Path) -> bool:
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (out, other))
    return losses(out) == losses(other) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.mark.parametrize("step", [0, 2, 4])
def test_from_any_checkpoint_and_from_none_every_step_is_done_once_and_alike(whole, killed, step):
    unbroken, run = whole
    out = run(killed(step), resume_from_checkpoint="true")
    assert [number for number, _ in losses(out)] == list(range(1, STEPS + 1)) and same(out, unbroken)


def test_a_run_killed_after_its_last_step_is_not_trained_a_step_more(whole, killed):
    unbroken, run = whole
    out = run(killed(STEPS), resume_from_checkpoint="true")
    assert same(out, unbroken)
    assert json.loads((out / "checkpoint-5/trainer_state.json").read_text())["global_step"] == STEPS


@pytest.mark.parametrize("torn", ["", '{"global_step": 4, "log'])
def test_a_checkpoint_torn_in_saving_is_passed_over_and_removed(whole, killed, torn):
    unbroken, run = whole
    folder = killed(4)
    (folder / "checkpoint-4/trainer_state.json").write_text(torn)
    (folder / ".tmpAb3xY9").write_text("half")
    assert not is_whole(folder / "checkpoint-4")
    clear_remains(folder)
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-2"]
    assert not (folder / ".tmpAb3xY9").exists()
    assert same(run(folder, resume_from_checkpoint="true"), unbroken)


def test_a_torn_checkpoint_named_by_its_path_is_refused(killed, whole):
    folder = killed(4)
    (folder / "checkpoint-4/trainer_state.json").unlink()
    with pytest.raises(UserError, match="not a whole checkpoint; give true"):
        whole[1](folder, resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_the_random_states_of_all_processes_belong_to_a_whole_checkpoint(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    write_text(tmp_path / "run.json", '{"processes": 2}')
    (checkpoint / "rng_state_0.pth").write_text("")
    assert not is_whole(checkpoint)
    (checkpoint / "rng_state_1.pth").write_text("")
    assert is_whole(checkpoint)
    # resumed by more processes: those that wrote the checkpoint count
    write_text(tmp_path / "run.json", '{"processes": 4}')
    assert not is_whole(checkpoint)
    write_text(checkpoint / "processes.json", "2")
    assert is_whole(checkpoint)


def test_a_line_torn_by_a_kill_does_not_stop_the_resume(whole, killed):
    unbroken, run = whole
    folder = killed(2)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 1.2')
    assert same(run(folder, resume_from_checkpoint="true"), unbroken)


def test_the_log_keeps_what_the_checkpoint_vouches_for(tmp_path):
    rows = [
        {"step": 0, "seconds": 1.0, "eval_rubric": 5.0},
        {"step": 2, "seconds": 3.0, "loss": 1.0},
        {"step": 2, "seconds": 3.5, "train_runtime": 3.0},
        {"step": 3, "seconds": 4.0, "loss": 0.5},
    ]
    path = tmp_path / "log.jsonl"
    write_jsonl(path, rows)
    assert cut_log(path, 2) == 3.0
    assert read_jsonl(path) == rows[:2]
    assert cut_log(path, 0) == 0.0 and read_jsonl(path) == []  # the score at the start is taken again
    assert cut_log(tmp_path / "none.jsonl", 2) == 0.0


def test_a_checkpoint_closes_the_interval_of_the_log(whole, killed, tmp_path):
    _, run = whole
    unbroken = run(tmp_path / "unbroken", logging_steps=3)
    assert [step for step, _ in losses(unbroken)] == [2, 3, 4, 5]
    folder = killed(2)
    out = run(folder, resume_from_checkpoint="true", logging_steps=3)
    assert losses(out)[-2:] == losses(unbroken)[-2:]


def test_other_options_and_data_are_refused_all_at_once(whole, killed, manifest, tmp_path):
    folder = killed(2)
    other = manifest.with_name("other.jsonl")
    other.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserErrors) as caught:
        whole[1](
            folder,
            resume_from_checkpoint="true",
            train_manifest=str(other),
            learning_rate=0.5,
            gradient_accumulation_steps=2,
            seed=7,
            save_steps=1,
            logging_steps=2,
        )
    assert [error.split("=")[0].split(":")[0] for error in caught.value.errors] == [
        "learning_rate",
        "seed",
        "per_device_train_batch_size × gradient_accumulation_steps × processes",
        str(other),
    ]
    assert "began with 0.001; go on with the same" in caught.value.errors[0]


def test_data_that_changed_in_its_place_is_refused(whole, killed, manifest, parts, tmp_path):
    folder = killed(2)
    record = json.loads((folder / "run.json").read_text())
    record["data"][str(manifest)] = "0" * 64
    write_text(folder / "run.json", json.dumps(record))
    with pytest.raises(UserErrors, match=r"train.jsonl: is not what the run began with"):
        whole[1](folder, resume_from_checkpoint="true")


def test_a_longer_run_goes_on_with_a_warning(whole, killed, caplog):
    out = whole[1](killed(STEPS), resume_from_checkpoint="true", max_steps=7)
    assert [step for step, _ in losses(out)] == list(range(1, 8))
    assert "max_steps=7: the run began with 5" in caplog.text


def test_a_cache_is_found_again_by_the_same_model_in_another_folder(whole, tmp_path):
    shutil.copytree(whole[0] / "base", tmp_path / "elsewhere")
    there, here = (load_folder(f)[0] for f in (whole[0] / "base", tmp_path / "elsewhere"))
    assert fingerprint(there) == fingerprint(here)
    here.config.stack_size += 1
    assert fingerprint(there) != fingerprint(here)


def test_the_best_checkpoint_of_a_moved_run_is_found_beside_the_last(tmp_path):
    for step in (2, 4):
        (tmp_path / f"moved/checkpoint-{step}").mkdir(parents=True)
    state = TrainerState(best_model_checkpoint=str(tmp_path / "run/checkpoint-2"))
    Moved(str(tmp_path / "moved/checkpoint-4")).on_train_begin(None, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "moved/checkpoint-2")


def test_patience_that_ran_out_is_seen_in_the_log():
    history = [{"eval_rubric": 5.0}, {"loss": 1.0}, {"eval_rubric": 6.0}, {"eval_rubric": 5.5}]
    assert out_of_patience(history, 1) and not out_of_patience(history, 2)
    assert not out_of_patience([], 1)


def test_captions_that_do_not_end_are_not_written_again_in_other_batches(tmp_path, manifest):
    class Endless:
        device, calls = "cpu", 0

        def generate(self, input_ids, **_):
            self.calls += 1
            return torch.cat([input_ids, torch.full((len(input_ids), 3), 9)], 1)

    model = Endless()
    rows = CaptionRows.of(read_clips(str(manifest)), make_tokenizer(), max_response_tokens=64)
    for _ in range(2):
        (found,) = written_by_teacher(tmp_path / "targets.jsonl", model, [rows])
        assert list(found.responses) == list(rows.responses)
    assert model.calls == 1


def test_what_a_killed_process_left_of_a_file_is_cleared_by_the_next_writer(tmp_path):
    path = tmp_path / "rows[1].jsonl"
    child = os.fork()
    if not child:
        with atomic_open(path) as file:
            file.write("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    with workplace(path) as living:
        write_text(path, "whole")
        assert living.is_dir() and len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "whole"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_with_sigkill_it_goes_on_as_if_nothing_had_been(manifest, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def words(folder: Path) -> list[str]:
        chosen = options(folder / "out", folder / "cache", manifest, parts, max_steps=30)
        del chosen["save_total_limit"]
        return ["train", "distill", *(str(w) for k, v in chosen.items() for w in (f"--{k}", v))]

    resume = ("--resume_from_checkpoint", "true")
    case = Case("distill", words, resume, training_phase, compare_training)
    first, seconds = unbroken(case, tmp_path / "unbroken")
    result = kill_and_compare(case, tmp_path / "unbroken", tmp_path, 2, uniform(first, seconds, 0))
    assert len(result.phases) == 2 and result.found.equal, result
