"""Projector alignment before decoding.

Audio tokens are drawn towards the embeddings of the clip's own clue words.

It costs seconds, since no language model is run: the projector learns a softmax over the clue vocabulary, by
cosine similarity between its tokens and the frozen input embeddings of the words in P_act. Distillation (or
SFT) then starts from tokens that mean something to the LLM. In the paper's terms it stands where CL-Align
stands, before decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligncap.manifest import Utterance
from aligncap.prompts.templates import speaker_word
from aligncap.training.collators import stack_frames


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def clue_targets(utterances: list[Utterance], tokenizer: Any) -> tuple[list[int], Tensor]:
    """Token ids of all clue words, and how often each clip's clues hold them.

    "woman" or "man" is a clue of every caption where the speaker's gender is known.

    A clue is tokenised as it stands in P_act, after a space.

    Returns:
        ids: the clue vocabulary; counts: (clips, len(ids)).
    """
    said = [
        [*(clue for clues in u.clues for clue in clues), *[speaker_word(u.gender) or ""] * len(u.clues)]
        for u in utterances
    ]
    rows = [[t for clue in clues if clue for t in _ids(tokenizer, " " + clue)] for clues in said]
    ids = sorted({t for row in rows for t in row})
    column = {t: i for i, t in enumerate(ids)}
    counts = torch.zeros(len(rows), len(ids))
    for i, row in enumerate(rows):
        for t in row:
            counts[i, column[t]] += 1
    return ids, counts


def clue_logits(projector: Any, frames: Tensor, mask: Tensor, words: Tensor, scale: Tensor) -> list[Tensor]:
    """Scaled cosine similarity to each clue word, (clips, words): of the summary token, where there is one,
    and of the mean of the others."""
    tokens, token_mask = projector(frames, mask)
    unit = F.normalize(tokens - projector.norm.bias, dim=-1) * token_mask[..., None]
    first = int(projector.summary is not None)
    means = [unit[:, first:].sum(1) / token_mask[:, first:].sum(1, keepdim=True)]
    if first:
        means.append(unit[:, 0])
    return [scale * F.normalize(mean, dim=-1) @ F.normalize(words, dim=-1).T for mean in means]


def align_projector(
    projector: Any,
    embeddings: Tensor,
    utterances: list[Utterance],
    frames: list[Tensor],
    tokenizer: Any,
    *,
    steps: int,
    batch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train `projector` in place.

    Args:
        embeddings: the LLM's input embeddings (vocab, width), not trained.
        frames: pooled encoder frames of each utterance.

    Returns:
        Loss of each step: cross-entropy against the clip's distribution of clue words, in nats.
    """
    ids, counts = clue_targets(utterances, tokenizer)
    used = [i for i in range(len(utterances)) if counts[i].sum() > 0]
    if not used:
        return []
    device = embeddings.device
    words = embeddings[ids].detach().float()
    # Embeddings share a large common part, which tells no word from another: it becomes the tokens' bias.
    common = words.mean(0)
    words = words - common
    targets = counts / counts.sum(1, keepdim=True).clamp(min=1)
    scale = nn.Parameter(torch.tensor(20.0, device=device))
    fixed = {projector.norm.weight, projector.norm.bias}
    parameters = [p for p in projector.parameters() if p not in fixed]
    optimizer = torch.optim.AdamW([*parameters, scale], lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    with torch.no_grad():
        projector.norm.weight.fill_(words.pow(2).mean().sqrt())
        projector.norm.bias.copy_(common)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    projector.train()
    for _ in range(steps):
        chosen = [used[i] for i in torch.randint(len(used), (batch,), generator=generator).tolist()]
        padded, mask = stack_frames([frames[i] for i in chosen])
        logits = clue_logits(projector, padded.to(device), mask.to(device), words, scale)
        loss = torch.stack([F.cross_entropy(part, targets[chosen].to(device)) for part in logits]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    projector.eval()
    return losses
