"""scripts/plan_run.py: arithmetic by hand, more of everything takes more, and what users get wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from plan_run import CONSTANTS, DEVICES, Device, Work, constant, main, moved, plan, shards, shown
from shapes import ENCODERS, SHAPES, Encoder, Shape

LLM = Shape(layers=2, width=4, inner=8, heads=2, kv_heads=1, vocab=10, tied=True)  # 144 weights a layer
EAR = Encoder(layers=1, width=4, inner=8, heads=2, mels=2)
WORK = Work(LLM, EAR, hours=1.0, gpus=1, device=Device(1e12, 1e9, 2**30))


def of(work: Work) -> dict[str, object]:
    return {stage.name: stage for stage in plan(work)}


def test_operations_counted_by_hand():
    # Layers: 2 · 2 · 144 · tokens; attention: 4 · 2 layers · 4 wide · rows · length².
    assert LLM.flops(3, 5) == 2 * 2 * 144 * 15 + 4 * 2 * 4 * 3 * 25
    assert LLM.flops(1, 1, read=9) == 2 * 2 * 144 + 4 * 2 * 4 * 10  # one token that sees ten
    assert LLM.head(7) == 2 * 40 * 7
    # LoRA of rank 1: (8 + 6) · 2 layers. Forward and back through matrices, thrice the rest.
    adapters, attention = 2 * 28 * 15, 4 * 2 * 4 * 3 * 25
    assert LLM.step(3, 5, 2, rank=1) == 2 * 2 * 2 * 144 * 15 + 3 * (adapters + attention) + 2 * 2 * 40 * 6
    # A second and one of silence, 100 frames: a layer of 4 · (16 + 16) = 128 weights.
    assert EAR.weights == 128 + 3 * 4 * (2 + 4) + 1500 * 4
    assert EAR.flops(1) == 6 * 4 * (2 * 2 + 4) * 100 + 2 * 128 * 100 + 4 * 4 * 100**2


def test_a_pass_counts_what_a_model_multiplies():
    """The layout counter of the tests goes through the modules of a real model."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))
    from layouts import llm_flops
    from tiny import make_model

    model, _ = make_model()
    config = model.model.language_model.config
    shape = Shape(2, 32, 64, 4, 2, config.vocab_size, True)
    found = llm_flops(model.model.language_model, (3, 20), False, False)
    assert shape.flops(3, 20) == pytest.approx(found)


def test_the_encoders_weights_are_those_of_a_whisper():
    from transformers import WhisperConfig, WhisperModel

    with torch.device("meta"):
        own = {"d_model": 8, "encoder_layers": 2, "encoder_ffn_dim": 16, "encoder_attention_heads": 2}
        model = WhisperModel(
            WhisperConfig(**own, num_mel_bins=80, decoder_layers=0, vocab_size=8, pad_token_id=0)
        )
    counted = sum(p.numel() for n, p in model.encoder.named_parameters() if p.dim() > 1)
    assert Encoder(2, 8, 16, 2, 80).weights == counted


def test_time_of_one_stage_by_hand():
    found = of(WORK)["features"]
    clips = 3600 / 5
    assert WORK.clips == clips and WORK.speed == 1e12 * constant("attained") * constant("mfu")
    assert found.seconds["GPUs"] == pytest.approx(2 * clips * EAR.flops(5) / WORK.speed)  # and augmented
    assert found.seconds["cores"] == pytest.approx(3600 * constant("log_mel") / WORK.cores)
    assert found.written == pytest.approx(2 * 3600 / 0.32 * 2 * 4 * 2)  # 2 states of 4 numbers, float16
    assert found.time == max(found.seconds.values()) and found.seconds[found.bound] == found.time


def test_frames_that_would_take_too_much_are_computed_in_every_step():
    """As in training: above 20 GB only the clips that the projector is fitted to are encoded before."""
    large = replace(WORK, encoder=ENCODERS["whisper-large-v3"], hours=100.0)
    assert large.clips * large.frames == pytest.approx(2 * 100 * 3600 * 264e3) and large.live
    kept = replace(large, layers=1)
    assert kept.frames == pytest.approx(large.frames / 33) and not kept.live
    assert 8192 * large.frames > 20e9  # so fewer
    assert of(large)["features"].written == pytest.approx(20e9)
    more = of(large)["distill"].seconds["GPUs"] - of(kept)["distill"].seconds["GPUs"]
    assert more == pytest.approx(large.clips * large.captions * large.encoder.flops(5) / large.speed)


def test_what_is_sent_between_gpus_by_hand():
    assert moved(WORK, 100) == 0
    many = replace(WORK, gpus=4)
    trained = LLM.adapter(8) + 2_000_000
    assert shards(many) == 1 and moved(many, 100) == pytest.approx(100 * 8 * trained * 3 / 4)
    large = replace(many, llm=SHAPES["Llama-3.1-70B"], device=DEVICES["h100"])
    assert shards(large) == 4 and moved(large, 1) > 2 * 2 * large.llm.weights * 3 / 4


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "SmolLM2-135M"])
def test_more_hours_take_longer_and_more_gpus_less_time(name):
    base = Work(SHAPES[name], ENCODERS["whisper-large-v3"], 1000, 8, DEVICES["h100"])
    longer, wider = replace(base, hours=2000), replace(base, gpus=64)
    for one, two, three in zip(plan(base), plan(longer), plan(wider)):
        often = 1 if one.name == "features" else 2  # of the clips that the projector is fitted to
        assert two.time == pytest.approx(often * one.time) and two.written >= one.written
        assert three.time <= one.time and three.written == one.written
    slower = replace(base, device=DEVICES["a100"])
    assert sum(s.time for s in plan(slower)) > sum(s.time for s in plan(base))
    larger = replace(base, llm=SHAPES["Llama-3.1-70B"])
    assert sum(s.time for s in plan(larger)) > sum(s.time for s in plan(base))


def test_the_plan_is_printed(capsys):
    main(["Qwen2.5-7B", "1000", "8"])
    text = capsys.readouterr().out
    for name in "prepare annotate features teacher distill candidates judge dpo captions".split():
        assert f"| {name} |" in text
    assert "Launch: gpu1 or gpu8" in text and "| **all** |" in text


def test_a_folder_of_a_model_is_read(parts, capsys):
    main([parts["llm"], "1", "1", "--encoder", "whisper-base", "--device", "l4"])
    assert "| distill |" in capsys.readouterr().out


def test_rates_that_were_measured_take_the_place_of_assumed_ones(tmp_path, capsys):
    file = tmp_path / "gpu.jsonl"
    found = {"way": "distill, cached", "size": "Qwen2.5-7B", "mfu": 0.2, "rate": 989e12 * 0.8}
    file.write_text(json.dumps(found) + "\n")
    main(["Qwen2.5-7B", "1000", "8", "--measured", str(file)])
    slow = capsys.readouterr().out
    main(["Qwen2.5-7B", "1000", "8"])
    assert slow != capsys.readouterr().out
    file.write_text("{}\n")
    with pytest.raises(SystemExit, match="no row of `distill, cached`"):
        main(["Qwen2.5-7B", "1000", "8", "--measured", str(file)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Qwen9", "10", "1"], "neither a folder with config.json nor one of"),
        (["Qwen2.5-7B", "10"], "MODEL HOURS GPUS are needed"),
        (["Qwen2.5-7B", "-3", "1"], "unrecognized|expected|required|hours: must be above 0"),
        (["Qwen2.5-7B", "10", "0"], "gpus: must be above 0, is 0"),
        (["Qwen2.5-7B", "10", "1", "--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_wrong_words_are_named(words, message, capsys):
    import re

    with pytest.raises(SystemExit) as error:
        main(words)
    assert re.search(message, capsys.readouterr().err + str(error.value))


def test_every_constant_says_where_it_comes_from(capsys):
    assert all(source.startswith(("measured", "assumed", "exact")) for _, _, source in CONSTANTS.values())
    main(["--constants"])
    assert capsys.readouterr().out.count("\n") == len(CONSTANTS)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (90, "1.5 min"), (7200, "2 h"), (864_000_000, "10,000 d")]
)
def test_times_are_told_in_their_unit(seconds, text):
    assert shown(float(seconds)) == text
