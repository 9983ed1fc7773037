"""What is kept in bfloat16 changes no number."""

import copy

import pytest
import torch
from tiny import make_model, voice

from aligncap.models.precision import halve_frozen
from aligncap.training.arguments import SpeechArguments
from aligncap.training.collators import join_prompt_and_response
from aligncap.training.runs import add_adapters


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_weights_in_bfloat16_give_the_loss_and_gradients_of_autocast(tied, tmp_path):
    model, processor = make_model(tied=tied)
    torch.manual_seed(0)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("")
    args = SpeechArguments(
        output_dir=str(tmp_path), train_manifest=str(manifest), lora_dropout=0.0, report_to="none"
    )
    model.requires_grad_(False)
    plain = add_adapters(model, args, projector=True).eval()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    half = copy.deepcopy(plain)
    halve_frozen(half)

    inputs = processor.captioning_inputs([voice(1.0)])
    prompt = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    inputs |= join_prompt_and_response([prompt], [[5, 6, 7, 0]], pad=1)

    def step(of):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = of(**inputs, use_cache=False).loss
        loss.backward()
        return loss, {n: p.grad for n, p in of.named_parameters() if p.grad is not None}

    (loss, gradients), (other, others) = step(plain), step(half)
    assert torch.equal(loss, other)
    assert gradients.keys() == others.keys() and gradients
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name

    kinds = {name: p.dtype for name, p in half.named_parameters()}
    assert all(kinds[name] == torch.float32 for name in gradients)
    assert {kind for name, kind in kinds.items() if "embed_tokens" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "mlp" in name} == {torch.bfloat16}
