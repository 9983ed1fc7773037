"""Several sampled captions a clip from one pass over prompt and audio.

The prompt runs once a clip. Captions of a clip that have begun alike are one row of the batch until they
part, and a row leaves the batch when its captions have ended; both change the cost alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from aligncap.inference.captioner import Captioner
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration

HEAD = 64  # words sorted at first: most nuclei lie within


def random_numbers(seed: int, clip: str, num: int, length: int) -> np.ndarray:
    """Random numbers of a clip's candidates, (num, length), uniform in [0, 1), float64.

    They depend on seed, clip and candidate alone: not on batch or process, and neither a larger `num` nor a
    larger `length` changes the numbers that were there before.
    """
    texts = [f"{seed}\t{candidate}\t{clip}" for candidate in range(num)]
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big") for text in texts]
    return np.stack([np.random.default_rng(number).random(length) for number in seeds])


def pick(logits: Tensor, row: Tensor, numbers: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample one token for each candidate by inverting the distribution function of its row.

    Top-p is that of Holtzman et al. 2020 (arXiv 1904.09751): the likeliest tokens up to the first with which
    their mass reaches `top_p`. Only the head of the distribution is sorted, which gives the same set: the
    head grows until its mass reaches `top_p`.

    Args:
        logits: (rows, vocabulary).
        row: (candidates,), the row each candidate samples from.
        numbers: (candidates,), uniform in [0, 1).
        temperature: 0 takes the likeliest token.

    Returns:
        Token ids, (candidates,).
    """
    if temperature == 0:
        return logits.argmax(-1)[row]
    scores = logits.float() / temperature
    total = scores.logsumexp(-1, keepdim=True)
    if top_p < 1:
        ids, weights = nucleus(scores, total, top_p)
        # In the order of ids, words whose ranks rounding swaps still take the same numbers.
        ids, order = ids.sort(-1)
        weights = weights.gather(-1, order)
    else:
        weights = (scores - total).exp().double()
        ids = torch.arange(weights.shape[-1], device=weights.device).expand_as(weights)
    reached = weights.cumsum(-1)[row]
    whole = reached[:, -1:]
    place = (reached <= numbers[:, None] * whole).sum(-1)
    return ids[row, torch.minimum(place, (reached < whole).sum(-1))]


def nucleus(scores: Tensor, total: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Head of each row's distribution: ids and probabilities (float64), those outside the nucleus 0.

    Args:
        scores: (rows, vocabulary); total: (rows, 1), its logsumexp.
    """
    size = min(HEAD, scores.shape[-1])
    while True:
        values, ids = scores.topk(size)
        weights = (values - total).exp().double()
        if size == scores.shape[-1] or bool((weights.sum(-1) >= top_p).all()):
            return ids, weights * (weights.cumsum(-1) - weights < top_p)
        size = min(8 * size, scores.shape[-1])


@torch.inference_mode()
def sample_tokens(
    model: AlignCapForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    numbers: Tensor,
    *,
    temperature: float,
    top_p: float,
) -> list[list[list[int]]]:
    """Tokens of several captions of each clip of a batch, from one prefill.

    Args:
        model: adapters folded in.
        inputs: of `AlignCapProcessor.captioning_inputs`, left-padded, on the model's device.
        numbers: (clips, candidates, most new tokens), uniform in [0, 1): see `random_numbers`.
        temperature, top_p: see `pick`.

    Returns:
        clips -> candidates -> token ids, end-of-text left out.
    """
    device = inputs["input_ids"].device
    clips, num, length = numbers.shape
    numbers = numbers.to(device).flatten(0, 1)
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=device).reshape(-1)
    made: list[list[int]] = [[] for _ in range(clips * num)]

    output = model(**inputs, use_cache=True, logits_to_keep=1)
    mask = inputs["attention_mask"]
    positions = mask.sum(1)
    going = torch.arange(clips * num, device=device)  # candidates that have not ended
    row = going // num  # where each of them stands in the batch
    for step in range(length):
        tokens = pick(output.logits[:, -1], row, numbers[going, step], temperature, top_p)
        on = ~torch.isin(tokens, ends)
        going, row, tokens = going[on], row[on], tokens[on]
        for candidate, token in zip(going.tolist(), tokens.tolist(), strict=True):
            made[candidate].append(token)
        if len(going) == 0 or step + 1 == length:
            break
        vocabulary = output.logits.shape[-1]
        beginnings, row = torch.unique(row * vocabulary + tokens, return_inverse=True)
        parents = beginnings // vocabulary
        cache = output.past_key_values
        if len(parents) != len(mask) or bool((parents[1:] == parents[:-1]).any()):
            cache.reorder_cache(parents)
            mask, positions = mask[parents], positions[parents]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        output = model(
            input_ids=(beginnings % vocabulary)[:, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        positions = positions + 1
    return [made[i * num : (i + 1) * num] for i in range(clips)]


def sample_captions(
    captioner: Captioner,
    clips: Sequence[np.ndarray],
    ids: Sequence[str],
    *,
    num: int,
    temperature: float,
    top_p: float,
    seed: int,
    contexts: Sequence[Tensor | None] | None = None,
    cues: Sequence[str | None] | None = None,
    max_new_tokens: int | None = None,
) -> list[list[str]]:
    """`num` sampled captions of each clip, in one batch.

    Args:
        clips: mono samples at 16 kHz.
        ids: what each clip's random numbers come from, beside `seed`.
        temperature, top_p: see `pick`.
        contexts: of each clip, see `Captioner.contexts`.
        cues: measured in each clip, for a model that is shown them.
        max_new_tokens: by default the model's `config.max_response_tokens`.

    Returns:
        clips -> candidates; alike ones are kept.
    """
    inputs = captioner.inputs(list(clips), contexts, cues)
    length = max_new_tokens or captioner.model.config.max_response_tokens
    numbers = np.stack([random_numbers(seed, clip, num, length) for clip in ids])
    drawn = torch.from_numpy(numbers)
    tokens = sample_tokens(captioner.model, inputs, drawn, temperature=temperature, top_p=top_p)
    return [captioner.texts(candidates) for candidates in tokens]
