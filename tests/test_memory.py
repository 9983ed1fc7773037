"""The memory formula of scripts/benchmarks/shapes.py, counted by hand, and the choice that follows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts/benchmarks"))

from common import GIB
from shapes import SHAPES, Shape, choice, read_shape, terms

TINY = Shape(layers=2, width=4, inner=8, heads=2, kv_heads=1, vocab=10, tied=True)
HOW = {"batch": 2, "length": 3, "response": 1}


def test_terms_counted_by_hand():
    # A layer: q and o 4 × 4, k and v 4 × 2, three of 4 × 8: 16 + 16 + 8 + 8 + 96 = 144.
    assert (TINY.layer, TINY.weights) == (144, 2 * 144 + 40)
    found = terms(TINY, **HOW, half=False, rank=1)
    assert found["weights"] == 4 * 328 and found["copies"] == 0
    # LoRA on q (4 → 4) and v (4 → 2): 8 + 6 a layer, 16 bytes each.
    assert found["trained"] == 16 * 2 * 14
    # Of a token in a layer: 8 · 4 residuals, (2 · 5 + 16) · 4, 3 · 4 · 8.
    assert found["activations"] == 2 * 6 * (32 + 104 + 96)
    assert found["logits"] == 4 * 4 * 2 * 10 and found["softmaxes"] == 20 * 2 * 10


def test_shards_divide_what_is_kept_and_not_what_is_computed():
    one = terms(TINY, **HOW, half=True)
    many = terms(TINY, **HOW, half=True, shards=4)
    assert many["weights"] == 4 * 328 / 4 and many["trained"] == one["trained"] / 4
    # Alone, layers are kept in bfloat16, and a tied head is cast from the float32 table.
    assert one["weights"] == 2 * 2 * 144 + 4 * 40
    assert many["activations"] == one["activations"]
    assert (one["copies"], many["copies"]) == (2 * 40, 2 * (2 * 144 + 40))  # two layers in all


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("SmolLM2-135M", "gpu1 or gpu8"), ("Llama-3.1-8B", "gpu1 or gpu8"), ("Qwen2.5-32B", "fsdp2, 8 GPUs")],
)
def test_the_choice_for_80_gib(name, wanted):
    assert choice(SHAPES[name], 80 * GIB, batch=8, length=128, response=32, half=True) == wanted


def test_the_count_of_weights_is_that_of_a_model(parts, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parts["llm"])
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert read_shape(Path(parts["llm"])).weights == model.num_parameters() - norms
