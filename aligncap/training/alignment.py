"""The alignment of the projector: audio tokens drawn towards text, before decoding is trained.

The projector's features are standardised (`Projector.fit`), then audio tokens are drawn towards text
that the LLM already reads. It costs seconds, since no language model is run: text stands as the LLM's frozen
input embeddings. Training of the decoder then starts from tokens that mean something to it. Two ways:

- `clues` (default): a softmax over the clue vocabulary. The tokens of a clip are to be nearest to the
  words of its own P_act.
- `contrastive` (CL-Align of the paper's comparison): each clip's tokens are to be nearest to its own text,
  transcript and P_act, among the texts of the batch, and the text to the clip (InfoNCE, arXiv 1807.03748).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from aligncap.data.manifest import Utterance
from aligncap.models.build import embedding_rms
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.projectors import Projector
from aligncap.text.instruction import language_of
from aligncap.text.prompts import speaker_word
from aligncap.training.clips import Clips
from aligncap.training.collators import stack_frames
from aligncap.training.data import ClipInputs
from aligncap.training.responses import TokenLists
from aligncap.training.words import fit_words
from aligncap.utils.tensor_cache import TensorCache

Prepared = tuple[list[int], Tensor, Tensor, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]


def align(
    model: AlignCapForConditionalGeneration,
    inputs: ClipInputs,
    clips: Clips,
    *,
    steps: int = 400,
    fresh: bool = True,
    **options: Any,
) -> list[float]:
    """Fit the projector of `model` to the features of `clips`, and align it with their texts and labels.

    With 0 steps features are standardised and nothing is learnt: tokens that are words say all words alike.

    Args:
        inputs: of the clips, with cached features (`data.cached_inputs`).
        fresh: false: the standardisation and the tokens that are words stay as they were learnt before.
        options: of `align_projector`.

    Returns:
        Loss of each step of the alignment, see `align_projector`; none with 0 steps.
    """
    if inputs.features is None:
        raise ValueError("the projector is fitted to cached features; see data.cached_inputs")
    table: Any = model.get_input_embeddings()
    projector: Projector = model.model.multi_modal_projector
    frames = _Read(inputs.features, clips.keys)
    first = dict(zip(reversed(clips.keys), reversed(clips.utterances), strict=True))  # each sound once
    once = list(dict.fromkeys(clips.keys))
    if fresh:
        projector.fit(*feature_statistics(_Read(inputs.features, once)), embedding_rms(table))
    if not steps:
        return []
    if fresh:
        fit_words(model, inputs, once, [first[key] for key in once])
    return align_projector(
        projector,
        table.weight.detach(),
        clips.utterances,
        frames,
        inputs.processor.tokenizer,
        steps=steps,
        **options,
    )


class _Read(Sequence[Tensor]):
    """Tensors of a cache in the order of `keys`, each read when it is asked for."""

    def __init__(self, cache: TensorCache | Mapping[str, Tensor], keys: Sequence[str]) -> None:
        self.cache, self.keys = cache, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.cache[self.keys[index]]


def feature_statistics(frames: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all frames: (width,) or (layers, width) each."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for clip in frames:
        count, total = count + len(clip), total + clip.double().sum(0)
    mean = total / count
    for clip in frames:
        squares = squares + ((clip.double() - mean) ** 2).sum(0)
    return mean.float(), (squares / count).sqrt().float()


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _speaker(u: Utterance) -> str | None:
    """ "woman" or "man", in the language of the captions."""
    return speaker_word(u.gender, language_of(u.captions))


def clue_targets(
    utterances: Sequence[Utterance], tokenizer: PreTrainedTokenizerBase, *, speakers: bool = True
) -> tuple[list[int], TokenLists]:
    """Token ids of all clue words, and which of them each clip's clues hold.

    With `speakers`, "woman" or "man" is a clue of every caption where the speaker's gender is known. A clue
    is tokenised as it stands in P_act, after a space.

    Returns:
        ids: the clue vocabulary; held: of each clip places in it, one as often as the clues hold it.
    """
    known: dict[str, list[int]] = {}
    rows = []
    for u in utterances:
        words = [clue for clues in u.clues for clue in clues]
        word = _speaker(u) if speakers else None
        words += [word] * len(u.clues) if word else []
        for word in words:
            if word not in known:
                known[word] = _ids(tokenizer, " " + word)
        rows.append([token for word in words if word for token in known[word]])
    ids = sorted({token for row in rows for token in row})
    column = {token: place for place, token in enumerate(ids)}
    return ids, TokenLists([column[token] for token in row] for row in rows)


def count_targets(held: TokenLists, clips: Sequence[int], words: int) -> Tensor:
    """(clips, words): how often each of `clips` holds each word of the clue vocabulary."""
    return torch.stack([torch.bincount(torch.tensor(held[i]).long(), minlength=words) for i in clips]).float()


def text_vectors(
    utterances: Sequence[Utterance], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor
) -> tuple[list[list[Tensor]], list[list[str]]]:
    """What CL-Align draws a clip to: the mean input embedding of who speaks, transcript and one P_act.

    Returns:
        vectors: of each clip one of (width,) for each caption; texts: the same as text.
    """
    texts = [
        [" ".join(part for part in (who, u.transcript, p_act) if part) for p_act in u.p_act]
        for u, who in zip(utterances, map(_speaker, utterances), strict=True)
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
    projector: Projector,
    embeddings: Tensor,
    utterances: Sequence[Utterance],
    frames: Sequence[Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    way: str = "clues",
    batch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train `projector` in place.

    Args:
        embeddings: the LLM's input embeddings (vocab, width), not trained.
        frames: pooled encoder frames of each utterance.
        way: "clues" or "contrastive".

    Returns:
        Loss of each step, in nats: the cross-entropy of `word_loss` (mean over the kinds of token) or of
        `contrastive_loss`.
    """
    prepare = _contrastive if way == "contrastive" else _clues
    used, common, spread, loss_of = prepare(projector, embeddings, utterances, tokenizer, seed)
    if not used:
        return []
    device = embeddings.device
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
        tokens, token_mask = projector(padded.to(device), mask.to(device))
        loss = loss_of(F.normalize(tokens - projector.norm.bias, dim=-1), token_mask, chosen, scale)
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
    projector: Projector,
    embeddings: Tensor,
    utterances: Sequence[Utterance],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> Prepared:
    own = projector.speaker is not None
    ids, held = clue_targets(utterances, tokenizer, speakers=not own)
    used = np.flatnonzero(held.lengths).tolist()
    words = embeddings[ids].detach().float()
    # Embeddings share a large common part, which tells no word from another: it becomes the tokens' bias.
    common = words.mean(0)
    words = words - common

    def loss_of(unit: Tensor, mask: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
        counts = count_targets(held, chosen.tolist(), len(ids))
        parts = [word_loss(_mean(unit, mask, projector.clip_tokens), words, counts, scale)]
        if projector.summary is not None:
            parts.append(word_loss(unit[:, projector.word_tokens], words, counts, scale))
        return torch.stack(parts).mean()

    return used, common, words.pow(2).mean().sqrt(), loss_of


def _contrastive(
    projector: Projector,
    embeddings: Tensor,
    utterances: Sequence[Utterance],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> Prepared:
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
        return contrastive_loss(_mean(unit, mask, projector.word_tokens), text.to(unit.device), same, scale)

    # The std of tokens is that of single words, not of a text's mean, in which words cancel out.
    return used, common, embeddings.detach().float().std(), loss_of
