"""A run of `train dpo` from its start to its end: resumes, dev scores, alarms, mistakes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from preferring import adapter, equal_adapters, log, run
from safetensors.torch import load_file

from aligncap.cli import main
from aligncap.models.checkpoints import load_folder
from aligncap.training.dev_score import DevScore, Watch
from aligncap.training.dpo import SpeechDPOConfig, load_start
from aligncap.utils.errors import UserError, UserErrors


def test_accumulation_changes_nothing(preferred, tmp_path, start, pairs):
    run(
        tmp_path / "small", start, pairs, reference_cache="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=3,
    )  # fmt: skip
    equal_adapters(preferred, tmp_path / "small", atol=5e-5, rtol=1e-3)


def test_a_resumed_run_equals_an_unbroken_one(preferred, tmp_path, start, pairs):
    broken = tmp_path / "broken"
    shutil.copytree(preferred, broken)
    shutil.rmtree(broken / "checkpoint-4")
    (broken / "adapter_model.safetensors").unlink()
    run(broken, start, pairs, reference_cache="no", resume_from_checkpoint="true")
    equal_adapters(preferred, broken)
    assert log(broken) == pytest.approx(log(preferred), abs=1e-6)


def test_an_adapter_can_be_the_start_and_the_result_merges(tmp_path, preferred, pairs, capsys):
    """Start from an adapter: it is folded into base/, on which the new one stands."""
    out = tmp_path / "second"
    run(out, preferred, pairs)
    assert log(out)[0] == pytest.approx(0.6931, abs=1e-3)
    assert (out / "base" / "config.json").is_file()
    assert main(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0
    assert load_folder(tmp_path / "merged")


def test_the_best_checkpoint_by_the_dev_score_is_kept(tmp_path, start, pairs, manifest):
    out = tmp_path / "dev"
    run(out, start, pairs, dev_manifest=str(manifest), dev_clips=4, max_steps=6, patience=1)
    scores = log(out, "eval_rubric")
    assert len(scores) >= 2  # at the start, then every second step
    assert {"eval_length", "eval_top_share"} <= set(
        json.loads((out / "log.jsonl").read_text().splitlines()[0])
    )
    state = json.loads(max(out.glob("checkpoint-*/trainer_state.json")).read_text())
    best = state["best_global_step"]
    kept = load_file(out / f"checkpoint-{best}" / "adapter_model.safetensors")
    final = adapter(out)
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def test_patience_counts_the_start_and_goes_on_over_a_resume(tmp_path, start, pairs, manifest, monkeypatch):
    scores = iter([5.0, 4.0, 4.5, 9.0])  # at the start, after 1, 2, 3 steps
    found: list[float] = []

    def judged(self, *_, **__):
        found.append(next(scores))
        return {"rubric": found[-1], "length": 5.0, "top_share": 0.1}

    monkeypatch.setattr(DevScore, "__call__", judged)
    more = {"dev_manifest": str(manifest), "patience": 2, "eval_steps": 1, "save_steps": 1}
    run(tmp_path / "run", start, pairs, **more)
    assert found == [5.0, 4.0, 4.5]
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    scores, found = iter([4.5, 9.0]), []
    run(tmp_path / "run", start, pairs, **more, resume_from_checkpoint="true")
    assert found == [4.5]


def test_a_start_that_nothing_betters_is_told(tmp_path, start, pairs, manifest, monkeypatch, caplog):
    scores = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(
        DevScore, "__call__", lambda *_, **__: {"rubric": next(scores), "length": 5.0, "top_share": 0.1}
    )
    run(tmp_path / "run", start, pairs, dev_manifest=str(manifest))
    assert "no checkpoint did better than the start" in caplog.text


def test_a_base_of_another_start_is_not_taken_up(tmp_path, preferred, start, pairs):
    out = tmp_path / "run"
    load_start(str(preferred), out / "base")
    with pytest.raises(UserError, match="another --model"):
        other = tmp_path / "other"
        run(other, start, pairs, max_steps=2)
        load_start(str(other), out / "base")


def test_alarms_say_what_goes_wrong_and_what_to_do():
    watch = Watch(beta=0.1, chosen_drop=5.0, length_growth=0.25, top_share=0.15)
    first = {"rewards/chosen": -0.2, "eval_length": 10.0, "eval_top_share": 0.1}
    assert watch.alarms(first) == {}
    found = watch.alarms({"rewards/chosen": -0.7, "eval_length": 14.0, "eval_top_share": 0.5}, [first])
    assert set(found) == {"chosen_falls", "length_grows", "outputs_collapse"}
    assert "7.0 nats" in found["chosen_falls"] and "40%" in found["length_grows"]


def test_alarms_stand_in_the_log(tmp_path, start, pairs, caplog):
    run(tmp_path / "hot", start, pairs, max_steps=4, alarm_chosen_drop=-1.0)
    assert log(tmp_path / "hot", "alarm/chosen_falls")
    assert "alarm at step" in caplog.text


def test_wrong_options_are_all_named_at_once(tmp_path):
    with pytest.raises(UserErrors) as caught:
        SpeechDPOConfig(
            output_dir=str(tmp_path),
            model="nowhere",
            patience=2,
            reference_cache="maybe",
            precompute_ref_log_probs=True,
            max_length=9,
            loss_type=["sigmod"],
            f_divergence_type="kl",
        )
    text = str(caught.value)
    for part in ("model: nowhere", "patience", "maybe", "precompute", "max_length"):
        assert part in text, part
    for part in ('nearest is "sigmoid"', "'kl'", "a weight for each"):
        assert part in text, part


def test_help_shows_the_options_of_dpo(capsys):
    assert main(["train", "dpo", "--help"]) == 0
    text = capsys.readouterr().out
    assert (
        "--beta [0.1]" in text
        and "--loss_type [sigmoid sft]" in text
        and "--pair_kinds" in text
        and "max_length" not in text
    )
