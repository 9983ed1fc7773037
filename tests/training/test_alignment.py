import torch
from tiny import make_model

from aligncap.manifest import Utterance
from aligncap.training.alignment import align_projector, clue_logits, clue_targets
from aligncap.training.collators import stack_frames


def utterance(i: int, clues: list[list[str]], gender: str | None = None) -> Utterance:
    return Utterance(id=str(i), root=".", audio="x", corpus="made", gender=gender, clues=clues)


def test_targets_count_the_tokens_of_clues_and_of_who_speaks():
    _, processor = make_model()
    tokenizer = processor.tokenizer
    angry, woman = (tokenizer(w, add_special_tokens=False)["input_ids"] for w in (" angry", " woman"))
    ids, counts = clue_targets(
        [utterance(0, [["angry"], ["angry"]], "female"), utterance(1, [["calm"]])], tokenizer
    )
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
    ids, counts = clue_targets(utterances, processor.tokenizer)
    words = embeddings[ids] - embeddings[ids].mean(0)
    with torch.no_grad():
        logits = sum(clue_logits(projector, *stack_frames(frames), words, torch.tensor(20.0)))
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
