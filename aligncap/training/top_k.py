"""The teacher's k most likely tokens and one bucket for all others: k + 1 events in place of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def coarsen(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits of k + 1 events: the tokens `ids`, and any other token.

    Their softmax is the softmax of `logits` with all other tokens' mass added up. The bucket is a logsumexp
    over the other tokens, never 1 minus the mass of the k, which cancels where that mass is nearly 1.

    >>> coarsen(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0]])).exp().tolist()
    [[0.5, 0.5]]

    Args:
        logits: (tokens, vocab); ids: (tokens, k), int64, distinct in each row.

    Returns:
        (tokens, k + 1); or (tokens, k) where the k are the whole vocabulary and nothing is left for a bucket.
    """
    chosen = logits.gather(1, ids)
    if ids.shape[1] == logits.shape[1]:
        return chosen
    rest = torch.logsumexp(logits.scatter(1, ids, -torch.inf), 1, keepdim=True)
    return torch.cat([chosen, rest], 1)


def most_likely(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k most likely tokens and the log-probabilities of the k + 1 events at this temperature.

    Args:
        logits: (tokens, vocab), any float type; computed in float32.

    Returns:
        ids (tokens, k), int64; log_probs (tokens, k + 1), float32, the bucket last, as `coarsen` has it.
    """
    logits = logits.float() / temperature
    ids = logits.topk(k).indices
    return ids, F.log_softmax(coarsen(logits, ids), -1)


def pack(ids: Tensor, log_probs: Tensor) -> Tensor:
    """One int32 tensor (tokens, k + events): the ids, then the bits of the float32 log-probabilities.

    A cache row and a batch entry are one tensor then, and no mixed precision rounds integers on their way.
    """
    return torch.cat([ids.int(), log_probs.float().contiguous().view(torch.int32)], 1)


def unpack(packed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Inverse of `pack`: ids (tokens, k), int64, and log_probs (tokens, events), float32."""
    return packed[:, :k].long(), packed[:, k:].contiguous().view(torch.float32)


def coverage(rows: Iterable[Tensor], k: int) -> dict[str, float]:
    """Mass of the teacher's distribution that its k most likely tokens hold, over all tokens of packed rows.

    Returns:
        {"top_k": k, "mean": …, "least": …}, masses in [0, 1].
    """
    masses = torch.cat([unpack(row, k)[1][:, :k].double().exp().sum(1) for row in rows])
    return {"top_k": k, "mean": masses.mean().item(), "least": masses.min().item()}
