"""FlexAttention and compiled layers give what plain ones give; every trained weight has a gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from test_shared_prefix import adapted, batch_of, read
from tiny import make_model, make_trainer

from aligncap.training.dpo import SpeechDPOConfig
from aligncap.training.kernels import FLEX, attention, compile_layers
from aligncap.training.packing import language_model
from aligncap.utils.errors import UserErrors


@torch.no_grad()
def test_blocks_of_flex_attention_hide_what_the_mask_hides(tmp_path):
    """Without gradients: torch has no backward pass of FlexAttention on a CPU (tests/gpu has it)."""
    model, processor = make_model(projector_dropout=0.0)
    batch = batch_of(processor)
    model = adapted(model, tmp_path).eval()
    llm = language_model(model)
    wanted, plain = read(model, batch, True), read(model, batch, False)
    with attention(llm, FLEX):
        torch.compiler.set_stance("force_eager")  # transformers compiles the function
        try:
            found = read(model, batch, True)
        finally:
            torch.compiler.set_stance("default")
    assert llm.config._attn_implementation == "sdpa"  # as before
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[name], plain[name], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "no backward pass of it on CPUs"), ({"shared_prefix": False}, "has no effect with shared_prefix")],
)
def test_flex_attention_is_refused_where_it_cannot_be(options, message, tmp_path):
    for name in ("pairs.jsonl", "model"):
        (tmp_path / name).touch()
    paths = {"model": str(tmp_path / "model"), "train_pairs": str(tmp_path / "pairs.jsonl")}
    with pytest.raises(UserErrors, match=message):
        SpeechDPOConfig(output_dir=str(tmp_path), packed_attention="flex", **paths, **options)


WORDS = {"speakers": ["woman", "man"], "emotions": ["angry", "calm"]}


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_layer": "mix"},
        {"encoder_layer": "mix", **WORDS},
        {"projector_type": "linear"},
        {"projector_type": "conv"},
        {"projector_type": "qformer", "queries": 4},
    ],
    ids=lambda options: "-".join(options),
)
def test_everything_trained_has_a_gradient_in_every_step(options, tmp_path):
    """So DDP need not look for parameters without one (ddp_find_unused_parameters)."""
    trainer, batch = make_trainer(tmp_path, **options)
    assert trainer.args.ddp_find_unused_parameters is False
    trainer.compute_loss(trainer.model.train(), batch).backward()
    missing = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_adapters_of_encoder_layers_that_are_not_run_have_none(tmp_path):
    """The one case in which DDP must look for them."""
    trainer, batch = make_trainer(tmp_path, {"encoder_lora": 2})
    trainer.compute_loss(trainer.model.train(), batch).backward()
    missing = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert bool(missing) == (trainer.args.ddp_find_unused_parameters is not False)


@pytest.mark.slow
def test_compiled_layers_give_loss_and_gradients_of_plain_ones(tmp_path):
    trainer, batch = make_trainer(
        tmp_path, {"lora_dropout": 0.0, "projector_dropout": 0.0}, projector_dropout=0.0
    )
    plain = trainer.model
    compiled = copy.deepcopy(plain)
    assert compile_layers(language_model(compiled), backend="eager") == 2
    found = []
    for model in (plain, compiled):
        trainer.model = model.train()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        found.append((loss.item(), [p.grad for p in model.parameters() if p.grad is not None]))
    (loss, gradients), (other, others) = found
    assert other == pytest.approx(loss, rel=1e-6) and len(gradients) == len(others) > 4
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
