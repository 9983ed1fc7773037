"""Mean log-probabilities of captions: the plain sum, whatever the batch, and English before word salad."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import SENTENCES, make_llm, make_tokenizer

from aligncap.inference.fluency import log_probs
from aligncap.models.hub import DEFAULT_LLM, is_ready


class Counting(torch.nn.Module):
    """A model that counts the rows it is asked about."""

    def __init__(self, llm: torch.nn.Module) -> None:
        super().__init__()
        self.llm, self.rows, self.device = llm, 0, torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **rest: Any) -> Any:
        self.rows += len(input_ids)
        return self.llm(input_ids=input_ids, **rest)


@pytest.fixture(scope="module")
def tiny_llm() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    return make_llm(len(tokenizer)).eval(), tokenizer


def by_hand(caption: str, llm: Any, tokenizer: Any) -> float:
    ids = [tokenizer.eos_token_id, *tokenizer(caption, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        table = llm(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(table[i, token].item() for i, token in enumerate(ids[1:])) / (len(ids) - 1)


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_equals_the_plain_sum_in_any_batch_and_keeps_the_order(tiny_llm: Any, batch_tokens: int) -> None:
    found = log_probs(SENTENCES, loaded=tiny_llm, batch_tokens=batch_tokens)
    assert found == pytest.approx([by_hand(caption, *tiny_llm) for caption in SENTENCES], abs=1e-4)


def test_equal_captions_cost_once_and_spaces_make_no_difference(tiny_llm: Any) -> None:
    counting = Counting(tiny_llm[0])
    captions = [*SENTENCES, *SENTENCES, f"  {SENTENCES[0]}\n"]
    found = log_probs(captions, loaded=(counting, tiny_llm[1]))  # type: ignore[arg-type]
    assert counting.rows == len(SENTENCES)
    assert found[0] == found[len(SENTENCES)] == found[-1]


def test_an_empty_caption_is_as_unlikely_as_can_be_and_none_need_no_model(tiny_llm: Any) -> None:
    assert log_probs(["", "  "], loaded=tiny_llm) == [-math.inf, -math.inf]
    assert log_probs([], loaded=tiny_llm) == []


def test_a_model_is_read_from_its_folder(parts: dict[str, str]) -> None:
    found = log_probs(SENTENCES[:2], parts["llm"], device="cpu")
    assert all(math.isfinite(value) and value < 0 for value in found)


@pytest.mark.real
def test_english_is_likelier_than_the_same_words_shuffled() -> None:
    if not is_ready(DEFAULT_LLM):
        pytest.skip(f"{DEFAULT_LLM} is not fetched; run `aligncap models fetch {DEFAULT_LLM}`")
    plain = [
        "He sounds angry, and his voice is loud and high.",
        "She speaks slowly in a soft, sad voice.",
        "The speaker sounds calm and steady.",
    ]
    shuffled = [
        "High voice his and, loud angry sounds is he and.",
        "Soft slowly a voice, sad she in speaks.",
        "Steady speaker and sounds calm the.",
    ]
    values = log_probs(plain + shuffled)
    assert min(values[:3]) > max(values[3:])
