"""Other layouts of a distillation step give our loss; multiplications are counted as torch counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layouts import (
    Pairs,
    TrlLayout,
    UltravoxLayout,
    agreement,
    arguments,
    collect,
    loss_and_gradient,
    pick,
    step_flops,
    students,
)
from tiny import SENTENCES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aligncap.training.distill import DistillTrainer
from aligncap.utils.io import write_jsonl

KINDS = {"ours": DistillTrainer, "ultravox": UltravoxLayout, "trl": TrlLayout}


@pytest.fixture(scope="module")
def base(tmp_path_factory, parts) -> Path:
    from aligncap.models.build import build

    torch.manual_seed(0)
    model, processor = build(parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def everything(base, manifest, tmp_path_factory):
    return collect(base, manifest, 4, 8, torch.float32, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module", params=["forward_kl", "jsd"])
def made(request, base, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    args = arguments(folder, manifest, "float32", divergence=request.param, teacher_top_k=8, temperature=1.0)
    return students(base, args, KINDS)


def test_both_layouts_and_all_teachers_give_one_loss_and_gradient(made, everything):
    model, trainers = made
    rival = "trl" if trainers["ours"].args.divergence == "jsd" else "ultravox"
    found = [loss_and_gradient(trainers[rival], model, pick(everything, "frames", "live"))]
    ways = (("frames", "live"), ("frames", "states"), ("mel", "states"), ("frames", "top-k"))
    for audio, teacher in ways:
        found.append(loss_and_gradient(trainers["ours"], model, pick(everything, audio, teacher)))
    assert agreement(*found)  # asserts that they agree
    for (audio, _), (loss, gradient) in zip(ways[:-1], found[1:-1]):
        near, apart = (1e-5, 1e-5) if audio == "frames" else (2e-4, 4e-3)  # the cache keeps float16
        assert loss == pytest.approx(found[0][0], rel=near)
        most = float(gradient.abs().max())
        torch.testing.assert_close(gradient, found[0][1], atol=apart * most, rtol=1e-3)
    assert found[-1][0] < found[0][0]


def test_audio_padded_to_30_s_is_another_loss_of_like_size(made, everything):
    model, trainers = made
    masked, padded = (
        loss_and_gradient(trainers["ultravox"], model, pick(everything, audio, "live"))[0]
        for audio in ("mel", "padded")
    )
    assert masked != padded and masked == pytest.approx(padded, rel=0.5)


@pytest.mark.parametrize(
    ("kind", "audio", "teacher"),
    [("ours", "frames", "top-k"), ("ours", "mel", "states"), ("ultravox", "padded", "live")],
)
def test_multiplications_are_counted_as_torch_counts_them(made, everything, kind, audio, teacher):
    model, trainers = made
    batch = pick(everything, audio, teacher)
    model.train()
    # torch's counter knows the CPU's plain attention, not its fused one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainers[kind].compute_loss(model, trainers[kind]._prepare_inputs(dict(batch))).backward()
    model.zero_grad(set_to_none=True)
    counted = sum(step_flops(model.get_base_model(), batch, everywhere=kind == "ultravox").values())
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_layouts_of_dpo_give_our_loss_and_gradient(base, manifest, tmp_path):
    rows = [
        {"id": f"clip{i}", "chosen": a, "rejected": b, "kind": "best-worst", "manifest": str(manifest)}
        for i, (a, b) in enumerate([SENTENCES[:2], SENTENCES[1:3], SENTENCES[2:0:-1], SENTENCES[1::-1]])
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    pairs = Pairs(base, tmp_path / "pairs.jsonl", 4, 2.0, "float32", str(tmp_path / "run"))
    assert "all logits" in pairs.check()  # asserts that they agree
    ours, logits, head = (pairs.flops(way, "reference live") for way in ("ours", "all logits", "trl's head"))
    assert ours < logits < head
