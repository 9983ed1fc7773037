"""Divergences between teacher and student over response tokens, summed, in chunks.

Of the teacher either all logits are at hand, or its k most likely tokens and one bucket for all others: k + 1
events in place of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def divergence(
    student: Tensor, teacher: Tensor, name: str = "forward_kl", temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Sum over tokens of D(p ‖ q), p teacher and q student, each softened by `temperature`.

    forward_kl: Σ p log(p/q), AlignCap's KD-Regularisation up to the teacher's entropy (Liang et al. 2024).
    reverse_kl: Σ q log(q/p).
    jsd: β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q (Agarwal et al. 2024, eq. 1).

    The factor T² is the caller's. A worked example: p = (½, ½), q = (¼, ¾) gives forward KL
    ½ ln 2 + ½ ln ⅔ = ½ ln 4/3 = 0.14384.

    Args:
        student, teacher: logits (tokens, vocab), any float type; computed in float32.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: `name` is unknown, or `beta` is not between 0 and 1.
    """
    log_q = F.log_softmax(student.float() / temperature, -1)
    log_p = F.log_softmax(teacher.float() / temperature, -1)
    if name == "forward_kl":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if name == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    if name != "jsd" or not 0 < beta < 1:
        raise ValueError(f"divergence {name!r} with beta={beta}: forward_kl, reverse_kl, or jsd in between")
    weights = torch.tensor([beta, 1 - beta], device=log_p.device).log()
    log_m = torch.logsumexp(torch.stack([log_p + weights[0], log_q + weights[1]]), 0)
    from_p = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
    from_q = F.kl_div(log_m, log_q, reduction="sum", log_target=True)
    return beta * from_p + (1 - beta) * from_q


def top_k_divergence(
    student: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    name: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """`divergence` of k + 1 events: the teacher's k most likely tokens, and one bucket for all others.

    By the data-processing inequality it is never above the divergence over the vocabulary; with k the whole
    vocabulary the two are equal. A worked example: p = (½, ¼, ¼), q = (¼, ½, ¼), k = 1: the events have
    p' = (½, ½) and q' = (¼, ¾), forward KL ½ ln 4/3 = 0.14384; over the vocabulary it is ¼ ln 2 = 0.17329.

    Args:
        student: logits (tokens, vocab), any float type; computed in float32.
        ids, log_probs: of the teacher at the same temperature; see `most_likely`.
    """
    events = coarsen(student.float() / temperature, ids)
    return divergence(events, log_probs, name, 1.0, beta)


def chunked(loss: Callable[..., Tensor], *parts: Tensor, chunk: int = 32, **options: Any) -> Tensor:
    """`loss`, a sum over tokens such as `divergence`, over chunks of tokens, recomputed in the backward pass.

    The float32 softmaxes of a whole batch (tokens × vocabulary) never stand in memory together. Equal to the
    plain form.

    Args:
        parts: what `loss` takes, each of one row a token, the student's logits first.
    """
    total = parts[0].sum().float() * 0.0  # keeps the graph when a batch holds no response token
    for some in zip(*(part.split(chunk) for part in parts), strict=True):
        if torch.is_grad_enabled() and parts[0].requires_grad:
            total = total + checkpoint(loss, *some, use_reentrant=False, **options)
        else:
            total = total + loss(*some, **options)
    return total


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
