import math

import pytest
import torch
from tiny import make_model
from torch.nn.functional import normalize

from aligncap.data.manifest import Utterance
from aligncap.training.align import (
    _mean,
    align_projector,
    clue_targets,
    contrastive_loss,
    count_targets,
    speaker_targets,
)
from aligncap.training.collators import stack_frames


def utterance(i: int, clues: list[list[str]], gender: str | None = None) -> Utterance:
    return Utterance(id=str(i), root=".", audio="x", corpus="made", gender=gender, clues=clues)


def test_targets_count_the_tokens_of_clues_and_of_who_speaks():
    _, processor = make_model()
    tokenizer = processor.tokenizer
    angry, woman = (tokenizer(w, add_special_tokens=False)["input_ids"] for w in (" angry", " woman"))
    ids, held = clue_targets(
        [utterance(0, [["angry"], ["angry"]], "female"), utterance(1, [["calm"]])], tokenizer
    )
    counts = count_targets(held, range(2), len(ids))
    assert set(angry) <= set(ids) and set(woman) <= set(ids)
    assert counts[0].sum() == 2 * len(angry) + 2 * len(woman)
    assert counts[1, [ids.index(t) for t in angry if t not in woman]].sum() < counts[0].sum()


def test_alignment_draws_tokens_to_the_words_of_their_clip():
    torch.manual_seed(0)
    model, processor = make_model(pool_size=4)
    projector = model.model.multi_modal_projector
    embeddings = model.get_input_embeddings().weight.detach()
    utterances = [utterance(i, [["angry" if i % 2 else "calm"]]) for i in range(16)]
    frames = [torch.randn(3, 16) + (2.0 if i % 2 else -2.0) for i in range(16)]
    losses = align_projector(
        projector, embeddings, utterances, frames, processor.tokenizer, steps=60, batch=16, learning_rate=1e-2
    )
    assert losses[-1] < 0.8 * losses[0]
    ids, held = clue_targets(utterances, processor.tokenizer)
    counts = count_targets(held, range(16), len(ids))
    words = embeddings[ids] - embeddings[ids].mean(0)
    with torch.no_grad():
        tokens, mask = projector(*stack_frames(frames))
        unit = normalize(tokens - projector.norm.bias, dim=-1)
        clips = normalize(_mean(unit, mask, projector.clip_tokens), dim=-1)
        logits = 20.0 * clips @ normalize(words, dim=-1).T
    score = (logits.softmax(-1) * (counts > 0)).sum(1)
    assert (score > 0.7).float().mean() > 0.8


def test_clips_without_clues_leave_the_projector_alone():
    model, processor = make_model()
    projector = model.model.multi_modal_projector
    before = projector.linear_1.weight.clone()
    weight = model.get_input_embeddings().weight
    assert (
        align_projector(
            projector, weight, [utterance(0, [])], [torch.zeros(2, 16)], processor.tokenizer, steps=3
        )
        == []
    )
    assert torch.equal(before, projector.linear_1.weight)


def test_the_contrastive_loss_is_that_of_hand():
    speech, text = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    loss = contrastive_loss(speech, text, torch.eye(2, dtype=torch.bool), torch.tensor(2.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2.0)))
    alike = contrastive_loss(speech, speech[[0, 0]], torch.ones(2, 2, dtype=torch.bool), torch.tensor(2.0))
    # rows: both texts are right, ln 2 each; columns: clip 0 at cosine 1, clip 1 at 0, half each
    column = -(0.5 * math.log(1 / (1 + math.exp(-2))) + 0.5 * math.log(1 / (1 + math.exp(2))))
    assert alike.item() == pytest.approx((math.log(2) + column) / 2)


def test_contrastive_alignment_tells_clips_of_different_texts_apart():
    torch.manual_seed(0)
    model, processor = make_model(pool_size=4, speaker_relative=True)
    projector = model.model.multi_modal_projector
    weight = model.get_input_embeddings().weight.detach()
    utterances = [utterance(i, []) for i in range(16)]
    for i, u in enumerate(utterances):
        u.p_act, u.transcript = ["Voice: angry." if i % 2 else "Voice: calm."], "Kids"
    frames = [torch.randn(3, 16) + (2.0 if i % 2 else -2.0) for i in range(16)]
    options = {"steps": 60, "batch": 16, "learning_rate": 1e-2, "way": "contrastive"}
    means = [torch.zeros(16)] * 16
    losses = align_projector(
        projector, weight, utterances, frames, processor.tokenizer, speaker_means=means, **options
    )
    # two texts, eight clips each: ln 8 is the least there is
    assert losses[0] > 2.3 and losses[-1] == pytest.approx(math.log(8), abs=0.1)


def test_the_speaker_token_learns_who_speaks_and_the_others_do_not():
    torch.manual_seed(0)
    model, processor = make_model(pool_size=4, speaker_relative=True)
    weight = model.get_input_embeddings().weight.detach()
    utterances = [
        utterance(i, [["angry" if i % 2 else "calm"]], "female" if i % 4 < 2 else "male") for i in range(16)
    ]
    ids, held = clue_targets(utterances, processor.tokenizer, speakers=False)
    counts = count_targets(held, range(16), len(ids))
    who = speaker_targets(utterances)
    assert counts.sum(1).min() > 0 and who.tolist() == [0, 0, 1, 1] * 4
    said = [set(processor.tokenizer(w, add_special_tokens=False)["input_ids"]) for w in (" angry", " calm")]
    assert set(ids) == said[0] | said[1]
    shift = [torch.ones(16) * (1.0 if i % 4 < 2 else -1.0) for i in range(16)]
    frames = [s + torch.randn(3, 16) * 0.1 + (2.0 if i % 2 else -2.0) for i, s in enumerate(shift)]
    losses = align_projector(
        model.model.multi_modal_projector,
        weight,
        utterances,
        frames,
        processor.tokenizer,
        steps=80,
        batch=16,
        learning_rate=1e-2,
        speaker_means=shift,
    )
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        padded, mask = stack_frames(frames)
        said = model.model.multi_modal_projector.speaker_logits(padded, mask, torch.stack(shift)).argmax(1)
    assert torch.equal(said, who)
    assert speaker_targets([utterance(0, [])]).tolist() == [-100]
