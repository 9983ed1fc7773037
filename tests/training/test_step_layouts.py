"""The rivals of scripts/bench_distill.py give our loss; scripts/step_flops.py counts as torch does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from bench_parts import arguments, collect, loss_and_gradient, pick, students
from distill_rivals import TrlLayout, UltravoxLayout
from step_flops import step_flops

from aligncap.training.distill import DistillTrainer

KINDS = {"ours": DistillTrainer, "ultravox": UltravoxLayout, "trl": TrlLayout}


@pytest.fixture(scope="module")
def base(tmp_path_factory, parts) -> Path:
    from aligncap.models.checkpoints import build

    torch.manual_seed(0)
    model, processor = build(parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def everything(base, manifest, tmp_path_factory):
    return collect(base, manifest, 4, 8, tmp_path_factory.mktemp("caches"), ["float32"])["float32"]


@pytest.fixture(scope="module", params=["forward_kl", "jsd"])
def made(request, base, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    args = arguments(folder, manifest, "float32", divergence=request.param, teacher_top_k=8, temperature=1.0)
    return students(base, args, KINDS)


def test_both_layouts_and_all_teachers_give_one_loss_and_gradient(made, everything):
    model, trainers = made
    rival = "trl" if trainers["ours"].args.divergence == "jsd" else "ultravox"
    wanted, gradient = loss_and_gradient(trainers[rival], model, pick(everything, "frames", "live"))
    for audio, teacher in (("frames", "live"), ("frames", "states"), ("mel", "states")):
        loss, found = loss_and_gradient(trainers["ours"], model, pick(everything, audio, teacher))
        assert loss == pytest.approx(wanted, rel=1e-5)
        torch.testing.assert_close(found, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-3)
    less, _ = loss_and_gradient(trainers["ours"], model, pick(everything, "frames", "top-k"))
    assert 0 < less < wanted


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
