"""How likely a text language model finds a caption: the offline judge's measure of fluent English."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aligncap.models.hub import DEFAULT_LLM, resolve
from aligncap.models.precision import best_dtype
from aligncap.utils.distributed import ALONE, Gathered, Group, Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def log_probs(
    captions: Sequence[str],
    model: str = DEFAULT_LLM,
    *,
    batch_tokens: int = 4096,
    device: str | None = None,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    store: Store | None = None,
    group: Group = ALONE,
) -> list[float]:
    """Mean log-probability (nats) of each caption's tokens, end of text left out.

    The caption stands alone after the model's start token, so that the prompt of no chat template counts.
    Equal captions are computed once. Batches are of like length, padded on the right; a caption's value does
    not depend on its batch beyond rounding (1e-4 in float32, 3e-2 in bfloat16).

    Args:
        captions: an empty one gets minus infinity.
        model: name for `models.sources.resolve`: a default, a local folder or a hub's ORG/NAME.
        batch_tokens: tokens of a batch, padding included.
        device: "cpu", "cuda", …; the GPU where there is one by default.
        loaded: a model with its tokenizer, instead of `model`.
        store: where values are kept as they come, by text.
        group: the processes that share the texts; all return the same.

    Raises:
        UserError: no such model.
    """
    import torch

    llm, tokenizer = loaded or _load(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    texts = sorted({" ".join(caption.split()) for caption in captions} - {""})
    start = _start_token(tokenizer)
    ids = {text: [start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts}

    @torch.inference_mode()
    def compute(batch: Sequence[str]) -> dict[str, float]:
        rows = [ids[text] for text in batch]
        longest = max(map(len, rows))
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        tokens, mask = tokens.to(llm.device), mask.to(llm.device)
        logits = llm(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        # position i predicts token i + 1
        wanted = tokens[:, 1:]
        taken = logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)
        means = (taken * mask[:, 1:]).sum(-1) / mask[:, 1:].sum(-1)
        return dict(zip(batch, means.tolist(), strict=True))

    store = Gathered(group) if store is None else store
    group.share_out(store, _batches(ids, batch_tokens), compute, "fluency")
    plain = [" ".join(caption.split()) for caption in captions]
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


def _start_token(tokenizer: Any) -> int:
    start = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if start is None else start)


@lru_cache(maxsize=1)
def _load(name: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(name)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=best_dtype(device))
    llm.to(device).eval()  # type: ignore[arg-type]
    return llm, AutoTokenizer.from_pretrained(folder)
