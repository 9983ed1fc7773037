"""Projector alignment before decoding: audio tokens are drawn towards text that the LLM already reads.

It costs seconds, since no language model is run: text stands as the LLM's frozen input embeddings.
Training of the decoder then starts from tokens that mean something to it. Two ways:

- `clues` (default): a softmax over the clue vocabulary. The tokens of a clip are to be nearest to the
  words of its own P_act.
- `contrastive` (CL-Align of the paper's comparison): each clip's tokens are to be nearest to its own text,
  transcript and P_act, among the texts of the batch, and the text to the clip (InfoNCE, arXiv 1807.03748).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligncap.data.manifest import Utterance
from aligncap.text.prompts import speaker_word, speaker_words
from aligncap.training.collators import IGNORE, stack_frames

WAYS = ("clues", "contrastive")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def clue_targets(
    utterances: list[Utterance], tokenizer: Any, *, speakers: bool = True
) -> tuple[list[int], Tensor]:
    """Token ids of all clue words, and how often each clip's clues hold them.

    With `speakers`, "woman" or "man" is a clue of every caption where the speaker's gender is known.

    A clue is tokenised as it stands in P_act, after a space.

    Returns:
        ids: the clue vocabulary; counts: (clips, len(ids)).
    """
    return _word_targets(
        [
            [
                *(clue for clues in u.clues for clue in clues),
                *([speaker_word(u.gender)] * len(u.clues) if speakers else ()),
            ]
            for u in utterances
        ],
        tokenizer,
    )


def speaker_targets(utterances: list[Utterance]) -> Tensor:
    """Place of each clip's speaker among the words for speakers, -100 where the gender is not known."""
    words = speaker_words()
    said = [speaker_word(u.gender) for u in utterances]
    return torch.tensor([words.index(word) if word in words else IGNORE for word in said])


def _word_targets(said: list[list[str | None]], tokenizer: Any) -> tuple[list[int], Tensor]:
    rows = [[t for word in words if word for t in _ids(tokenizer, " " + word)] for words in said]
    ids = sorted({t for row in rows for t in row})
    column = {t: i for i, t in enumerate(ids)}
    counts = torch.zeros(len(rows), len(ids))
    for i, row in enumerate(rows):
        for t in row:
            counts[i, column[t]] += 1
    return ids, counts


def text_vectors(
    utterances: list[Utterance], tokenizer: Any, embeddings: Tensor
) -> tuple[list[list[Tensor]], list[list[str]]]:
    """What CL-Align draws a clip to: the mean input embedding of who speaks, transcript and one P_act.

    Returns:
        vectors: of each clip one of (width,) for each caption; texts: the same as text.
    """
    texts = [
        [
            " ".join(part for part in (speaker_word(u.gender), u.transcript, p_act) if part)
            for p_act in u.p_act
        ]
        for u in utterances
    ]
    known = {
        text: embeddings[_ids(tokenizer, " " + text)].float().mean(0) for row in texts for text in set(row)
    }
    return [[known[text] for text in row] for row in texts], texts


def word_loss(tokens: Tensor, words: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of the scaled cosine similarities of `tokens` (clips, width) to `words` (words, width)
    against each clip's distribution of words; clips without words are left out."""
    targets = targets.to(tokens.device)
    used = targets.sum(1) > 0
    if not used.any():
        return tokens.sum() * 0
    targets = targets[used] / targets[used].sum(1, keepdim=True)
    logits = scale * F.normalize(tokens[used], dim=-1) @ F.normalize(words, dim=-1).T
    return F.cross_entropy(logits, targets)


def contrastive_loss(speech: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, (clips, width) each; `same` (clips, clips) says which texts are alike.

    A clip whose text stands twice in the batch has both as targets, at half each.
    """
    logits = scale * F.normalize(speech, dim=-1) @ F.normalize(text, dim=-1).T
    targets = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def align_projector(
    projector: Any,
    embeddings: Tensor,
    utterances: list[Utterance],
    frames: list[Tensor],
    tokenizer: Any,
    *,
    steps: int,
    way: str = "clues",
    speaker_means: Sequence[Tensor] | None = None,
    batch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train `projector` in place.

    Args:
        embeddings: the LLM's input embeddings (vocab, width), not trained.
        frames: pooled encoder frames of each utterance.
        way: one of WAYS.
        speaker_means: of each utterance, for a projector that hears clips against their speaker's mean.

    Returns:
        Loss of each step, in nats: the cross-entropy of `word_loss` (mean over the kinds of token) or of
        `contrastive_loss`, and where a speaker token is, that of the words for speakers.
    """
    prepare = _contrastive if way == "contrastive" else _clues
    used, common, spread, loss_of = prepare(projector, embeddings, utterances, tokenizer, seed)
    if not used:
        return []
    device = embeddings.device
    speakers = speaker_targets(utterances)
    scale = nn.Parameter(torch.tensor(20.0, device=device))
    fixed = {projector.norm.weight, projector.norm.bias}
    parameters = [p for p in projector.parameters() if p not in fixed]
    optimizer = torch.optim.AdamW([*parameters, scale], lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    with torch.no_grad():
        projector.norm.weight.fill_(spread)
        projector.norm.bias.copy_(common)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    projector.train()
    for _ in range(steps):
        picks = torch.randint(len(used), (batch,), generator=generator)
        chosen = torch.tensor(used)[picks]
        padded, mask = stack_frames([frames[i] for i in chosen.tolist()])
        means = None
        if speaker_means is not None:
            means = torch.stack([speaker_means[i] for i in chosen.tolist()]).to(device)
        padded, mask = padded.to(device), mask.to(device)
        tokens, token_mask = projector(padded, mask, means)
        loss = loss_of(F.normalize(tokens - projector.norm.bias, dim=-1), token_mask, chosen, scale)
        if projector.speaker is not None and bool((speakers[chosen] != IGNORE).any()):
            logits = projector.speaker_logits(padded, mask, means)
            loss = loss + F.cross_entropy(logits, speakers[chosen].to(device), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    projector.eval()
    return losses


def _mean(unit: Tensor, mask: Tensor, first: int) -> Tensor:
    """Mean of the tokens from `first` on, which exist: (clips, width)."""
    return (unit * mask[..., None])[:, first:].sum(1) / mask[:, first:].sum(1, keepdim=True)


def _clues(
    projector: Any, embeddings: Tensor, utterances: list[Utterance], tokenizer: Any, seed: int
) -> tuple[list[int], Tensor, Tensor, Any]:
    own = projector.speaker is not None
    ids, counts = clue_targets(utterances, tokenizer, speakers=not own)
    used = [i for i in range(len(utterances)) if counts[i].sum() > 0]
    words = embeddings[ids].detach().float()
    # Embeddings share a large common part, which tells no word from another: it becomes the tokens' bias.
    common = words.mean(0)
    words = words - common

    def loss_of(unit: Tensor, mask: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
        parts = [word_loss(_mean(unit, mask, projector.clip_tokens), words, counts[chosen], scale)]
        if projector.summary is not None:
            parts.append(word_loss(unit[:, int(own)], words, counts[chosen], scale))
        return torch.stack(parts).mean()

    return used, common, words.pow(2).mean().sqrt(), loss_of


def _contrastive(
    projector: Any, embeddings: Tensor, utterances: list[Utterance], tokenizer: Any, seed: int
) -> tuple[list[int], Tensor, Tensor, Any]:
    vectors, texts = text_vectors(utterances, tokenizer, embeddings.detach())
    used = [i for i, row in enumerate(texts) if row]
    every = torch.stack([vectors[i][0] for i in used]) if used else embeddings[:1].detach().float()
    common = every.mean(0)
    generator = torch.Generator().manual_seed(seed + 1)

    def loss_of(unit: Tensor, mask: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
        clips = chosen.tolist()
        pick = [int(torch.randint(len(texts[i]), (1,), generator=generator)) for i in clips]
        text = torch.stack([vectors[i][k] for i, k in zip(clips, pick, strict=True)]) - common
        number = {t: n for n, t in enumerate({texts[i][k]: 0 for i, k in zip(clips, pick, strict=True)})}
        which = torch.tensor([number[texts[i][k]] for i, k in zip(clips, pick, strict=True)])
        same = (which[:, None] == which[None]).to(unit.device)
        return contrastive_loss(
            _mean(unit, mask, int(projector.speaker is not None)), text.to(unit.device), same, scale
        )

    # The spread of tokens is that of single words, not of a text's mean, in which words cancel out.
    return used, common, embeddings.detach().float().std(), loss_of
