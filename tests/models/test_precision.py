"""What is kept in bfloat16 changes no number; another attention changes its rounding alone."""

import copy

import pytest
import torch
from tiny import make_model, voice, with_adapters

from aligncap.models.precision import (
    autocast,
    best_dtype,
    halve_frozen,
    halve_table,
    has_bfloat16,
    suit_half,
    training_dtype,
)
from aligncap.training.collators import join_prompt_and_response
from aligncap.training.sft import SpeechSFTConfig
from aligncap.utils.errors import UserErrors


def student(tied, folder):
    """A model with adapters that are not zero, and a batch of one clip."""
    model, processor = make_model(tied=tied)
    torch.manual_seed(0)
    manifest = folder / "m.jsonl"
    manifest.write_text("")
    args = SpeechSFTConfig(
        output_dir=str(folder), train_manifest=str(manifest), lora_dropout=0.0, report_to="none"
    )
    model.requires_grad_(False)
    adapted = with_adapters(model, args, projector=True).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = processor.captioning_inputs([voice(1.0)])
    prompt = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    return adapted, inputs | join_prompt_and_response([prompt], [[5, 6, 7, 0]], pad=1)


def step(model, inputs, half=True):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_weights_in_bfloat16_give_the_loss_and_gradients_of_autocast(tied, tmp_path):
    plain, inputs = student(tied, tmp_path)
    half = copy.deepcopy(plain)
    halve_frozen(half)

    (loss, gradients), (other, others) = step(plain, inputs), step(half, inputs)
    assert torch.equal(loss, other)
    assert gradients.keys() == others.keys() and gradients
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name

    kinds = {name: p.dtype for name, p in half.named_parameters()}
    assert all(kinds[name] == torch.float32 for name in gradients)
    assert {kind for name, kind in kinds.items() if "embed_tokens" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "mlp" in name} == {torch.bfloat16}
    assert half.get_base_model().lm_head.weight.dtype == torch.bfloat16  # tied or not


def test_a_model_laid_out_for_bfloat16_is_as_near_to_float32_as_autocast_is(tmp_path):
    plain, inputs = student(True, tmp_path)
    suited, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    suit_half(suited)
    assert suited.get_base_model().model.language_model.config._attn_implementation == "eager"

    def gradient(found):
        return torch.cat([g.flatten() for g in found[1].values()])

    wanted = step(exact, inputs, half=False)
    errors = [(gradient(step(m, inputs)) - gradient(wanted)).norm() for m in (plain, suited)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.2 * gradient(wanted).norm()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_table_that_was_stored_in_16_bits_is_kept_so_and_gives_the_same(stored):
    table = torch.nn.Embedding(50, 8).requires_grad_(False)
    table.weight.data = table.weight.data.to(stored).float()
    ids = torch.arange(50)
    before = table(ids)
    halve_table(table)
    assert table.weight.dtype == stored and torch.equal(table(ids), before)
    assert table(ids).dtype == torch.float32


def test_a_table_that_16_bits_cannot_hold_or_that_is_trained_or_scaled_stays():
    class Scaled(torch.nn.Embedding):
        pass

    exact = torch.nn.Embedding(50, 8).requires_grad_(False)
    trained, scaled = torch.nn.Embedding(4, 2), Scaled(4, 2).requires_grad_(False)
    for other in (trained, scaled):
        other.weight.data.fill_(0.5)
    for table in (exact, trained, scaled):
        halve_table(table)
        assert table.weight.dtype == torch.float32


def test_an_attention_that_was_chosen_stays(tmp_path):
    model, _ = student(True, tmp_path)
    llm = model.get_base_model().model.language_model
    llm.config._attn_implementation = "flex_attention"
    suit_half(model)
    assert llm.config._attn_implementation == "flex_attention"


def of_gpu(monkeypatch, native: bool) -> None:
    """A machine with a GPU that has bfloat16 instructions, or like T4 and V100 emulates them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )


def test_emulated_bfloat16_does_not_count(monkeypatch):
    of_gpu(monkeypatch, native=False)
    assert not has_bfloat16() and training_dtype("auto")[0] == torch.float16
    assert "scaled losses" in training_dtype("auto")[1] and best_dtype() == torch.float32
    of_gpu(monkeypatch, native=True)
    assert has_bfloat16() and training_dtype("auto")[0] == torch.bfloat16
    assert training_dtype("float32") == (torch.float32, "float32, as asked")


def test_a_cpu_without_bfloat16_trains_in_float32(monkeypatch):
    monkeypatch.setattr("aligncap.models.precision.has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_dtype("auto")[0] == torch.float32


def test_float16_needs_a_gpu(tmp_path):
    (tmp_path / "m.jsonl").touch()
    with pytest.raises(UserErrors, match="precision=float16: needs a GPU"):
        SpeechSFTConfig(
            output_dir=str(tmp_path), train_manifest=str(tmp_path / "m.jsonl"), precision="float16"
        )


def test_scaled_losses_in_float16_give_the_gradients_of_float32(tmp_path):
    plain, inputs = student(True, tmp_path)
    half, scaler = copy.deepcopy(plain), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    suit_half(half, torch.float16)
    _, exact = step(plain, inputs, half=False)
    with autocast("cpu", torch.float16):
        scaler.scale(half(**inputs, use_cache=False).loss).backward()
    trained = [p for p in half.parameters() if p.grad is not None]
    optimizer = torch.optim.SGD(trained)
    scaler.unscale_(optimizer)
    found = torch.cat([p.grad.flatten() for p in trained])
    wanted = torch.cat([g.flatten() for g in exact.values()])
    assert found.isfinite().all() and (found - wanted).norm() < 0.02 * wanted.norm()


def test_autocast_to_float32_is_none():
    with autocast("cpu", torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("cpu", torch.bfloat16):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
