"""Divergences between teacher and student over response tokens, summed, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aligncap.training.top_k import coarsen
from aligncap.utils.errors import UserError

NAMES = ("forward_kl", "reverse_kl", "jsd")


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
        UserError: `name` is unknown.
    """
    if name not in NAMES:
        raise UserError(f"divergence {name!r} is unknown; choose from {', '.join(NAMES)}")
    log_q = F.log_softmax(student.float() / temperature, -1)
    log_p = F.log_softmax(teacher.float() / temperature, -1)
    if name == "forward_kl":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if name == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    if not 0 < beta < 1:
        raise UserError(
            f"jsd_beta={beta}: must lie between 0 and 1; use forward_kl or reverse_kl for the ends"
        )
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
        ids, log_probs: of the teacher at the same temperature; see `top_k.most_likely`.
    """
    events = coarsen(student.float() / temperature, ids)
    return divergence(events, log_probs, name, 1.0, beta)


def chunked_divergence(student: Tensor, teacher: Tensor, chunk: int = 32, **options: Any) -> Tensor:
    """`divergence` over chunks of tokens, recomputed in the backward pass: the float32 softmaxes of a whole
    batch (tokens × vocabulary) never stand in memory together. Equal to the plain form."""
    return _in_chunks(divergence, chunk, options, student, teacher)


def chunked_top_k_divergence(
    student: Tensor, ids: Tensor, log_probs: Tensor, chunk: int = 32, **options: Any
) -> Tensor:
    """`top_k_divergence` over chunks, as `chunked_divergence`."""
    return _in_chunks(top_k_divergence, chunk, options, student, ids, log_probs)


def _in_chunks(
    loss: Callable[..., Tensor], chunk: int, options: dict[str, Any], student: Tensor, *teacher: Tensor
) -> Tensor:
    total = student.sum().float() * 0.0  # keeps the graph when a batch holds no response token
    for parts in zip(student.split(chunk), *(t.split(chunk) for t in teacher), strict=True):
        if torch.is_grad_enabled() and student.requires_grad:
            total = total + checkpoint(loss, *parts, use_reentrant=False, **options)
        else:
            total = total + loss(*parts, **options)
    return total
