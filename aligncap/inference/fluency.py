"""How likely a text language model finds a caption: the offline judge's measure of fluent English."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from aligncap.models.build import LLM, load_llm
from aligncap.models.hub import DEFAULT_LLM
from aligncap.models.precision import best_dtype, pick_device
from aligncap.utils.distributed import ALONE, Gathered, Group, Store


def log_probs(
    captions: Sequence[str],
    model: str = DEFAULT_LLM,
    *,
    batch_tokens: int = 4096,
    device: str | None = None,
    loaded: LLM | None = None,
    store: Store | None = None,
    group: Group = ALONE,
) -> list[float]:
    """Mean log-probability (nats) of each caption's tokens, end of text left out.

    The caption stands alone after the model's start token, so that the prompt of no chat template counts.
    Equal captions are computed once. Batches are of like length, padded on the right; a caption's value does
    not depend on its batch beyond rounding (1e-4 in float32, 3e-2 in bfloat16).

    Args:
        captions: an empty one gets minus infinity.
        model: name for `models.hub.resolve`: a default, a local folder or a hub's ORG/NAME.
        batch_tokens: tokens of a batch, padding included.
        device: "cpu", "cuda", …; the GPU where there is one by default.
        loaded: a model with its tokenizer, instead of `model`.
        store: where values are kept as they come, by text.
        group: the processes that share the texts; all return the same.

    Raises:
        UserError: no such model or device.
    """
    llm, tokenizer = loaded or _load(model, pick_device(device))
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    plain = [" ".join(caption.split()) for caption in captions]
    texts = sorted({*plain} - {""})
    ids = {text: [start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts}

    @torch.inference_mode()
    def compute(batch: Sequence[str]) -> dict[str, float]:
        rows = [torch.tensor(ids[text]) for text in batch]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(llm.device)
        lengths = torch.tensor([len(row) for row in rows], device=llm.device)
        mask = (torch.arange(tokens.shape[1], device=llm.device) < lengths[:, None]).long()
        logits = llm(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        # position i predicts token i + 1
        taken = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        means = (taken * mask[:, 1:]).sum(-1) / mask[:, 1:].sum(-1)
        return dict(zip(batch, means.tolist(), strict=True))

    store = Gathered(group) if store is None else store
    group.share_out(store, _batches(ids, batch_tokens), compute, "fluency")
    return [store[text] if text else -float("inf") for text in plain]


def _batches(ids: dict[str, list[int]], batch_tokens: int) -> list[list[str]]:
    """Texts by length, as many a batch as fit."""
    batches: list[list[str]] = []
    for text in sorted(ids, key=lambda text: (len(ids[text]), text)):
        # the longest comes last, so its length is the batch's width
        if not batches or (len(batches[-1]) + 1) * len(ids[text]) > batch_tokens:
            batches.append([])
        batches[-1].append(text)
    return batches


@lru_cache(maxsize=1)
def _load(name: str, device: str) -> LLM:
    llm, tokenizer = load_llm(name, best_dtype(device))
    return llm.to(device).eval(), tokenizer  # type: ignore[arg-type]
