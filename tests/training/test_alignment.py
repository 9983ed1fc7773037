import math

import pytest
import torch
from tiny import make_model
from torch.nn.functional import normalize

from aligncap.data.manifest import Utterance
from aligncap.models.checkpoints import load_folder, save_whole
from aligncap.models.projectors import clip_means
from aligncap.training.alignment import _mean, align_projector, clue_targets, contrastive_loss, count_targets
from aligncap.training.collators import stack_frames
from aligncap.training.data import ClipInputs
from aligncap.training.words import _even, emotion_labels, fit_words


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
    model, processor = make_model(pool_size=4, speakers=["woman", "man"])
    projector = model.model.multi_modal_projector
    weight = model.get_input_embeddings().weight.detach()
    utterances = [utterance(i, []) for i in range(16)]
    for i, u in enumerate(utterances):
        u.p_act, u.transcript = ["Voice: angry." if i % 2 else "Voice: calm."], "Kids"
    frames = [torch.randn(3, 16) + (2.0 if i % 2 else -2.0) for i in range(16)]
    options = {"steps": 60, "batch": 16, "learning_rate": 1e-2, "way": "contrastive"}
    losses = align_projector(projector, weight, utterances, frames, processor.tokenizer, **options)
    # two texts, eight clips each: ln 8 is the least there is
    assert losses[0] > 2.3 and losses[-1] == pytest.approx(math.log(8), abs=0.1)


def two_corpora(model, processor, folder, layers=4):
    """Keys, utterances and cached frames of two corpora: emotion moves one dimension, the voice another."""
    rng = torch.Generator().manual_seed(0)
    utterances, features = [], {}
    for i in range(96):
        corpus, angry, woman = ("a", "b")[i >= 72], i % 2 == 0, i % 4 < 2
        u = utterance(i, [], "female" if woman else "male")
        u.corpus, u.emotion = corpus, "angry" if angry else "calm"
        shift = torch.zeros(16)
        shift[2], shift[5], shift[9] = 2.0 * angry, 2.0 * woman, 5.0 * (corpus == "b")
        frames = shift + 0.5 * torch.randn(3, layers, 16, generator=rng)
        features[str(i)] = frames if layers > 1 else frames[:, 0]
        utterances.append(u)
    return list(features), utterances, ClipInputs(processor, features)


@pytest.mark.parametrize("layer", ["mix", 2])
def test_words_are_read_linearly_and_carry_over_to_another_corpus(layer, tmp_path):
    words = {"speakers": ["woman", "man"], "emotions": ["angry", "calm", "sad"]}
    model, processor = make_model(pool_size=4, encoder_layer=layer, **words)
    layers = 4 if layer == "mix" else 1
    keys, utterances, inputs = two_corpora(model, processor, tmp_path, layers)
    fit_words(model, inputs, keys, utterances)
    projector = model.model.multi_modal_projector
    shape = (8, 3, 4, 16) if layer == "mix" else (8, 3, 16)
    frames, mask = torch.zeros(shape), torch.ones(8, 3, dtype=torch.bool)
    frames[..., 11] = 4.0  # another channel
    frames[::2, ..., 2], frames[:4, ..., 5] = 2.0, 2.0
    emotions = projector.emotion_logits(frames, mask).softmax(-1)
    assert emotions.argmax(1).tolist() == [0, 1] * 4 and emotions[:, 2].max() < 1e-6  # sad: no clip
    speakers = projector.speaker.logits(clip_means(frames, mask))
    assert speakers.argmax(1).tolist() == [0] * 4 + [1] * 4
    rows = torch.stack([projector.emotion_logits(inputs.features[k][None], mask[:1])[0] for k in keys])
    weights = torch.tensor(_even([(u.corpus, u.emotion == "calm") for u in utterances]))
    assert torch.allclose(projector.emotion.usual, (rows * weights[:, None]).mean(0), atol=1e-3)
    save_whole(model, tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    again = load_folder(tmp_path / "m")[0].model.multi_modal_projector
    assert torch.equal(again.emotion_logits(frames, mask), projector.emotion_logits(frames, mask))


def test_corpora_and_their_labels_weigh_alike():
    kinds = [("a", 0)] * 6 + [("a", 1)] * 2 + [("b", 0)] * 4
    weights = _even(kinds)
    totals = {kind: sum(w for k, w in zip(kinds, weights) if k == kind) for kind in set(kinds)}
    assert totals == pytest.approx({("a", 0): 3, ("a", 1): 3, ("b", 0): 6})


def test_the_emotion_of_a_clip_without_a_label_is_what_its_captions_name():
    labelled, told, silent = utterance(0, []), utterance(1, []), utterance(2, [])
    labelled.emotion, labelled.captions = "sad", ["She sounds angry."]
    told.captions = ["He sounds happy.", "He sounds glad.", "He sounds angry."]
    silent.captions = ["A low voice."]
    assert emotion_labels([labelled, told, silent]) == ["sad", "happy", None]
