"""Tokens that are words, and what clips recorded alike tell about a clip."""

import math

import numpy as np
import pytest
import torch
from tiny import make_model, voice
from transformers import WhisperConfig

from aligncap.audio.files import prepare_samples
from aligncap.inference.captioner import Captioner
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.context import FEWEST, SHRINK, VARIETY, chosen_clips, offset, variety
from aligncap.models.projectors import MLPProjector, WordToken, clip_means
from aligncap.utils.errors import UserError

WORDS = {"speakers": ["woman", "man"], "emotions": ["angry", "happy", "sad"]}


def hearing(**options):
    """A tiny model whose emotion token is a random reading."""
    model, processor = make_model(**(WORDS | options))
    torch.manual_seed(1)
    token = model.model.multi_modal_projector.emotion
    token.weight.normal_(0, 3)
    token.usual.normal_()
    return model, processor


def projector(**options):
    torch.manual_seed(0)
    shape = {"projector_hidden": 8, "stack_size": 2, "projector_dropout": 0.0}
    encoder = WhisperConfig(d_model=4, encoder_attention_heads=2)
    return MLPProjector(AlignCapConfig(audio_config=encoder, **shape, **WORDS, **options), 6).eval()


def test_a_word_token_is_the_mixture_of_its_words():
    token = WordToken(2, 2, 3)
    token.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    token.bias.copy_(torch.tensor([0.0, np.log(3.0)]))
    token.words.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    found = token(token.logits(torch.tensor([[2.0, 2.0]])))
    assert torch.allclose(found, torch.tensor([[[0.25, 0.75, 0.0]]]))


def test_means_of_clips_leave_out_padding_and_the_outer_layers():
    frames = torch.arange(24.0).reshape(1, 3, 4, 2)
    mask = torch.tensor([[True, True, False]])
    wanted = frames[0, :2, 1:3].mean(0).flatten()
    assert torch.equal(clip_means(frames, mask)[0], wanted)
    single = frames[:, :, 0]
    assert torch.equal(clip_means(single, mask)[0], single[0, :2].mean(0))


def test_a_built_model_knows_its_words():
    model, processor = make_model(**WORDS)
    made, table = model.model.multi_modal_projector, model.get_input_embeddings().weight
    for token, word in ((made.speaker.words[0], " woman"), (made.emotion.words[2], " sad")):
        ids = processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        assert torch.allclose(token, table[ids].mean(0))


def test_tokens_stand_in_the_order_of_the_placeholders():
    made = projector()
    for number, token in enumerate((made.speaker, made.emotion), 1):
        token.words.fill_(float(number))
    tokens, mask = made(torch.randn(2, 4, 4), torch.ones(2, 4, dtype=torch.bool))
    assert torch.allclose(tokens[:, 0], torch.ones(2, 6))
    assert torch.allclose(tokens[:, 1], torch.full((2, 6), 2.0))
    assert mask.shape[1] == 2 + 1 + 2 and made.clip_tokens == 3


def test_a_context_is_taken_from_the_emotion_alone():
    made = projector()
    made.emotion.words.normal_()
    frames, mask = torch.randn(1, 4, 4), torch.ones(1, 4, dtype=torch.bool)
    plain, heard = made(frames, mask)[0], made(frames, mask, torch.tensor([[0.0, 5.0, 0.0]]))[0]
    assert not torch.allclose(plain[:, 1], heard[:, 1])
    assert torch.equal(plain[:, [0, 2, 3, 4]], heard[:, [0, 2, 3, 4]])


def test_variety_is_the_information_of_clip_and_emotion():
    sure = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    assert variety(sure) == pytest.approx(np.log(2), abs=1e-6)
    assert variety(sure[:1].repeat(9, 1)) == pytest.approx(0, abs=1e-6)
    assert variety(sure + torch.tensor([7.0, -3.0])) == pytest.approx(variety(sure), abs=1e-6)


@pytest.mark.parametrize("kind", ["speaker", "session"])
def test_a_context_of_few_or_of_like_clips_is_none(kind):
    usual, moods = torch.zeros(2), torch.tensor([[9.0, -9.0], [-3.0, 3.0]])
    assert torch.equal(offset(moods.repeat(20, 1)[: FEWEST[kind] - 1], usual, kind), usual)
    assert torch.equal(offset(moods[:1].repeat(FEWEST[kind], 1), usual, kind), usual)
    whole = offset(moods.repeat(8, 1), usual, kind)
    assert torch.allclose(whole, moods.mean(0) * 16 / (16 + SHRINK))
    assert torch.allclose(offset(moods.repeat(8, 1), moods.mean(0), kind), usual)


@pytest.mark.parametrize("kind", ["speaker", "session"])
def test_a_context_counts_as_its_clips_differ(kind):
    moods, shift = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 1), torch.tensor([2.0, 0.0])
    sizes = torch.linspace(0, 6, 200)
    counted = [float(offset(moods * size + shift, torch.zeros(2), kind)[0]) for size in sizes]
    counted = [round(c, 5) for c in counted]
    assert counted[0] == 0 and counted == sorted(counted)
    assert counted[-1] == pytest.approx(2 * 32 / (32 + SHRINK), abs=1e-4)
    low, high = VARIETY[kind]
    half = [c for c, size in zip(counted, sizes) if low < variety(moods * size) < high]
    assert half and all(0 < c < counted[-1] for c in half)


def test_clips_are_chosen_evenly_and_small_groups_left_out():
    assert chosen_clips(["a"] * 100, 8, clips=5)["a"] == [0, 24, 49, 74, 99]
    assert list(chosen_clips(["a"] * 8 + ["b"] * 7 + [None] * 9, 8)) == ["a"]


@pytest.mark.parametrize("layer", [2, "mix"])
def test_captions_of_one_clip_do_not_depend_on_its_batch(layer):
    captioner = Captioner(*hearing(encoder_layer=layer))
    clips = [voice(0.4 + 0.05 * i, f0=100 + 20 * i, seed=i) for i in range(FEWEST["session"] + 1)]
    clips = [prepare_samples(clip, 16_000) for clip in clips]
    contexts = captioner.contexts(clips, ["a"] * len(clips), "session")
    assert contexts[0] is not None
    together = captioner.generate(clips, contexts, max_new_tokens=6)
    alone = [captioner.generate([c], [m], max_new_tokens=6)[0] for c, m in zip(clips, contexts)]
    assert together == alone
    assert captioner(clips, sessions="a", max_new_tokens=6, batch_size=2) == together


def test_a_model_without_an_emotion_token_has_no_context():
    captioner = Captioner(*make_model())
    clips = [voice(0.3, seed=i) for i in range(8)]
    assert captioner.contexts(clips, ["a"] * 8, "speaker") == [None] * 8
    assert "context" not in captioner.inputs(clips, [None] * 8)


def test_speakers_or_sessions_but_not_both():
    captioner = Captioner(*hearing())
    with pytest.raises(UserError, match="one of them"):
        captioner([voice(0.3)], speakers="a", sessions="b")
    with pytest.raises(UserError, match="sessions: 1 for 2 clips"):
        captioner([voice(0.3)] * 2, sessions=["b"])


def test_an_emotion_that_is_not_to_be_named_has_no_share():
    model, processor = hearing()
    captioner = Captioner(model, processor)
    clip = [prepare_samples(voice(0.5), 16_000)]
    inputs = captioner.inputs(clip, emotions=["angry", "sad"])
    made = model.model.multi_modal_projector
    with torch.no_grad():
        pooled = model.model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
        share = made.emotion_logits(*pooled, inputs["context"]).softmax(-1)
    assert share[0, 1] == 0 and share.sum().item() == pytest.approx(1)


def test_before_a_clip_is_heard_emotions_rarer_in_talk_are_half_as_likely():
    model, processor = hearing(emotions=["angry", "fearful", "happy", "surprised"])
    clip = [prepare_samples(voice(0.5), 16_000)]
    equal, everyday = (Captioner(model, processor, prior=prior) for prior in ("equal", "everyday"))
    made, inputs = model.model.multi_modal_projector, equal.inputs(clip)
    assert "context" not in inputs
    with torch.no_grad():
        pooled = model.model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
        one = made.emotion_logits(*pooled)[0]
        other = made.emotion_logits(*pooled, everyday.inputs(clip)["context"])[0]
    half = [0.0, math.log(0.5), 0.0, math.log(0.5)]
    torch.testing.assert_close(other - one, torch.tensor(half))
    # It adds to what other clips tell, and is no matter where the emotions to choose from are named.
    known = torch.arange(len(half)).float()
    torch.testing.assert_close(everyday.inputs(clip, [known])["context"][0], known - torch.tensor(half))
    assert "context" not in everyday.inputs(clip, emotions=model.config.emotions)


def test_captions_of_a_part_are_those_of_the_whole(tmp_path):
    import soundfile

    from aligncap.inference.batch import caption_jobs
    from aligncap.inference.jobs import Job

    captioner = Captioner(*hearing())
    jobs = []
    for i in range(FEWEST["session"] + 1):
        soundfile.write(tmp_path / f"{i}.wav", voice(0.3 + 0.05 * i, f0=100 + 20 * i, seed=i), 16_000)
        jobs.append(Job(str(i), f"{i}.wav", tmp_path / f"{i}.wav", "made/a"))
    options = {"kind": "session", "max_new_tokens": 6}
    whole, _ = caption_jobs(captioner, jobs, None, {}, 2, **options)
    part, _ = caption_jobs(captioner, jobs[1:3], None, {}, 2, every=jobs, **options)
    assert part == whole[1:3]


def test_measured_cues_stand_in_the_prompt_of_a_model_that_is_shown_them():
    _, processor = make_model(show_cues=True)
    prompt = processor.prompt_of("pitch low")
    assert "pitch low" in prompt and processor.audio_token in prompt and "<|cues|>" not in prompt
    assert "unknown" in processor.prompt_of(None)
    _, plain = make_model()
    assert plain.prompt_of("pitch low") == plain.prompt
