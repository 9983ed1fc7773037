"""The loss of `train dpo`: DPO's, against the start as its reference, in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preferring import TOLERANCE, equal_adapters, log, options, run
from torch.nn import functional as F

from aligncap.models.checkpoints import load_checkpoint, load_folder
from aligncap.training.collators import PreferenceCollator
from aligncap.training.data import ClipInputs
from aligncap.training.dpo import SpeechDPOConfig, SpeechDPOTrainer, wants_reference_cache
from aligncap.training.preference_data import PreferenceDataset, cached_reference
from aligncap.utils.errors import UserErrors


def test_pairs_of_like_length_can_share_a_batch(tmp_path, start, pairs):
    few = {"length_buckets": True, "per_device_train_batch_size": 3}
    run(tmp_path / "run", start, pairs, max_steps=1, **few)
    # The padding of plain rows says nothing of packed ones.
    assert "batches" not in json.loads((tmp_path / "run/run.json").read_text())
    found = trainer_of(tmp_path, start, pairs, **few)[0].buckets.summary()
    assert found["padding"] < found["padding_shuffled"] and found["batches"] == -(-found["rows"] // 3)
    with pytest.raises(UserErrors, match="tokens_per_batch: has no effect here"):
        SpeechDPOConfig(**options(tmp_path / "x", start, pairs, tokens_per_batch=500))


def trainer_of(tmp_path, start, pairs, **more):
    """A trainer whose adapter has moved away from the reference, and one batch of its rows."""
    args = SpeechDPOConfig(**options(tmp_path / "x", start, pairs, **more))
    model, processor = load_folder(start)
    rows = PreferenceDataset.from_pairs(pairs, ClipInputs(processor))
    trainer = SpeechDPOTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
    torch.manual_seed(1)
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    batch = PreferenceCollator(processor)([rows[i] for i in range(6)])
    return trainer, batch, rows, processor


def summed_log_probs(model, processor, row, side):
    """One caption at a time, full logits, a loop over its tokens."""
    ids = row["prompt_ids"] + row[side]
    mel = processor.features([row["samples"]])
    logits = model(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), **mel
    ).logits[0]
    total = 0.0
    for k, token in enumerate(row[side]):
        total = total + logits[len(row["prompt_ids"]) - 1 + k].log_softmax(-1)[token]
    return total


def test_loss_and_gradients_are_the_hand_written_formula(tmp_path, start, pairs):
    trainer, batch, rows, processor = trainer_of(tmp_path, start, pairs, beta=0.3)
    model = trainer.model
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    by_hand = []
    for i in range(6):
        policy = [summed_log_probs(model, processor, rows[i], s) for s in ("chosen_ids", "rejected_ids")]
        with torch.no_grad(), model.disable_adapter():
            ref = [summed_log_probs(model, processor, rows[i], s) for s in ("chosen_ids", "rejected_ids")]
        by_hand.append(-F.logsigmoid(0.3 * ((policy[0] - ref[0]) - (policy[1] - ref[1]))))
    wanted = torch.stack(by_hand).mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, **TOLERANCE)
    assert abs(loss.item() - 0.6931) > 1e-3  # the adapter has moved, or nothing would be tested
    assert any("multi_modal_projector" in n for n in found) and any("lora_A" in n for n in found)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, **TOLERANCE)


def test_ipo_by_hand(tmp_path, start, pairs):
    trainer, batch, rows, processor = trainer_of(tmp_path, start, pairs, beta=0.2, loss_type=["ipo"])
    model, losses = trainer.model, []
    for i in range(6):
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                policy = summed_log_probs(model, processor, rows[i], side)
                with model.disable_adapter():
                    ref = summed_log_probs(model, processor, rows[i], side)
            ratios.append((policy - ref) / len(rows[i][side]))
        losses.append((ratios[0] - ratios[1] - 1 / (2 * 0.2)) ** 2)
    torch.testing.assert_close(
        trainer.compute_loss(model, dict(batch)).detach(), torch.stack(losses).mean(), **TOLERANCE
    )


def test_the_sft_part_is_the_mean_over_chosen_tokens(tmp_path, start, pairs):
    trainer, batch, rows, processor = trainer_of(tmp_path, start, pairs, loss_type=["sft"])
    with torch.no_grad():
        total = sum(summed_log_probs(trainer.model, processor, rows[i], "chosen_ids") for i in range(6))
    tokens = sum(len(rows[i]["chosen_ids"]) for i in range(6))
    loss = trainer.compute_loss(trainer.model, dict(batch)).detach()
    torch.testing.assert_close(loss, -total / tokens, **TOLERANCE)


def test_the_placeholder_has_no_probability(tmp_path, start, pairs):
    """trl's own head would count it as a word."""
    trainer, batch, _, processor = trainer_of(tmp_path, start, pairs)
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        scored = trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        twice = {n: torch.cat([v, v]) if len(v) == 6 else v for n, v in inputs.items()}
        logits = trainer.model(**twice).logits
    assert logits[..., processor.audio_token_id :].max() < -1e30
    plain = logits.log_softmax(-1)[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(scored, plain * (labels[:, 1:] >= 0), **TOLERANCE)


def test_the_cached_reference_is_the_live_one(tmp_path, start, pairs):
    trainer, batch, rows, processor = trainer_of(tmp_path, start, pairs)
    live = trainer.compute_loss(trainer.model, dict(batch)).detach()
    reference = cached_reference(tmp_path / "cache", load_folder(start)[0], rows, dtype=torch.float32)
    read = replace(rows, reference=reference)
    args = SpeechDPOConfig(**options(tmp_path / "y", start, pairs))
    model = load_folder(start)[0]
    other = SpeechDPOTrainer(model=model, args=args, train_dataset=read, processing_class=processor)
    cached = PreferenceCollator(processor)([read[i] for i in range(6)])
    assert cached["ref_chosen_logps"].shape == (6,)
    torch.testing.assert_close(other.compute_loss(trainer.model, cached).detach(), live, **TOLERANCE)


def test_another_start_does_not_read_this_reference(tmp_path, start, pairs):
    model, processor = load_folder(start)
    rows = PreferenceDataset.from_pairs(pairs, ClipInputs(processor))
    first = cached_reference(tmp_path / "cache", model, rows, dtype=torch.float32)
    assert cached_reference(tmp_path, model, rows, dtype=torch.bfloat16).folder.name != first.folder.name
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.mul_(2)
    other = cached_reference(tmp_path / "cache", model, rows, dtype=torch.float32)
    assert other.folder != first.folder


def test_a_run_with_the_cached_reference_equals_a_live_one(preferred, tmp_path, start, pairs):
    run(tmp_path / "cached", start, pairs, reference_cache="yes")
    assert log(tmp_path / "cached") == pytest.approx(log(preferred), abs=1e-5)
    equal_adapters(preferred, tmp_path / "cached", atol=2e-5, rtol=2e-4)


def test_the_first_loss_is_ln_2(preferred):
    assert log(preferred)[0] == pytest.approx(0.6931, abs=1e-3)


def test_margins_grow_and_the_start_stays_what_it_was(preferred, start):
    margins = log(preferred, "rewards/margins")
    assert margins[-1] > margins[0]
    recorded = json.loads((preferred / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(recorded) == start.resolve()
    moved = load_checkpoint(preferred)[0].merge_and_unload().state_dict()
    still = load_folder(start)[0].state_dict()
    changed = {name for name in still if not torch.equal(still[name], moved[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert any("q_proj" in name for name in changed)
    assert not any("audio_tower" in name or "mlp" in name for name in changed)


def test_ld_alpha_is_never_read_from_the_cache(tmp_path, start, pairs):
    """Its sum depends on the length of the other caption of the pair."""
    args = SpeechDPOConfig(**options(tmp_path / "x", start, pairs, ld_alpha=0.5))
    assert not wants_reference_cache(args, pairs=4)
    with pytest.raises(UserErrors, match="ld_alpha"):
        SpeechDPOConfig(**options(tmp_path / "x", start, pairs, ld_alpha=0.5, reference_cache="yes"))


def test_features_from_the_cache_or_from_audio_are_one(preferred, tmp_path, start, pairs):
    run(tmp_path / "audio", start, pairs, reference_cache="no", feature_cache="no")
    assert log(tmp_path / "audio") == pytest.approx(log(preferred), abs=1e-4)


def test_a_run_that_shares_prompts_equals_one_of_plain_rows(preferred, tmp_path, start, pairs):
    run(tmp_path / "plain", start, pairs, reference_cache="no", shared_prefix=False)
    for name in ("loss", "rewards/margins", "entropy", "mean_token_accuracy", "logits/chosen"):
        assert log(tmp_path / "plain", name) == pytest.approx(log(preferred, name), abs=1e-5), name
    equal_adapters(preferred, tmp_path / "plain", atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("loss", ["ipo", "bco_pair", "aot", "sigmoid_norm"])
@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_every_loss_of_trl_reads_packed_pairs(tmp_path, start, pairs, loss, ld_alpha):
    found = []
    for shared in (True, False):
        more = {"loss_type": [loss], "ld_alpha": ld_alpha, "shared_prefix": shared}
        trainer, batch, *_ = trainer_of(tmp_path, start, pairs, **more)
        found.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert found[0] == pytest.approx(found[1], abs=1e-5, rel=1e-5)


def test_gradient_checkpointing_changes_nothing(preferred, tmp_path, start, pairs):
    run(tmp_path / "check", start, pairs, reference_cache="no", gradient_checkpointing=True)
    assert log(tmp_path / "check") == pytest.approx(log(preferred), abs=1e-5)
    equal_adapters(preferred, tmp_path / "check", atol=2e-5, rtol=2e-4)


def test_bfloat16_shares_prompts_too(tmp_path, start, pairs):
    for shared in (True, False):
        run(tmp_path / str(shared), start, pairs, precision="bfloat16", shared_prefix=shared)
    packed, plain = (log(tmp_path / str(shared)) for shared in (True, False))
    assert packed == pytest.approx(plain, abs=0.02) and packed[-1] < packed[0]


def test_audio_is_encoded_once_a_pair_for_policy_and_reference(tmp_path, start, pairs, monkeypatch):
    trainer, batch, *_ = trainer_of(tmp_path, start, pairs)
    model = trainer.model.get_base_model().model
    encode, rows = model.encode_audio, []

    def counted(features, mask):
        rows.append(len(features))
        return encode(features, mask)

    monkeypatch.setattr(model, "encode_audio", counted)
    trainer.compute_loss(trainer.model, dict(batch))
    assert rows == [6] and len(batch["input_ids"]) == 12


def test_a_language_model_without_such_masks_is_trained_on_plain_rows(
    tmp_path, start, pairs, monkeypatch, caplog
):
    wanted = trainer_of(tmp_path, start, pairs)
    loss = wanted[0].compute_loss(wanted[0].model, dict(wanted[1])).item()
    monkeypatch.setattr("aligncap.training.dpo.why_not_packed", lambda _: "it cannot")
    monkeypatch.setattr("aligncap.training.shared_prefix.pack_pairs", None)
    with caplog.at_level("INFO", "aligncap"):
        trainer, batch, *_ = trainer_of(tmp_path, start, pairs)
    assert "shared_prefix: off, since it cannot" in caplog.text
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(loss, abs=1e-5)
