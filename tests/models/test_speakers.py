import numpy as np
import pytest
import torch
from tiny import make_model, voice
from transformers import WhisperConfig

from aligncap.audio.files import prepare_samples
from aligncap.inference.captioner import Captioner
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.projectors import StackMLPProjector
from aligncap.models.speakers import FEWEST, chosen_clips, mean_frame, means_of_rows


def projector(**options):
    torch.manual_seed(0)
    shape = {"projector_hidden": 8, "stack_size": 2, "projector_dropout": 0.0}
    encoder = WhisperConfig(d_model=4, encoder_attention_heads=2)
    config = AlignCapConfig(audio_config=encoder, speaker_relative=True, **shape, **options)
    made = StackMLPProjector(config, 6)
    made.fit(torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.ones(4) * 2)
    made.speaker_words.copy_(torch.tensor([[1.0] * 6, [-1.0] * 6]))
    return made.eval()


def test_a_speaker_of_few_clips_is_unknown():
    speakers = ["a"] * FEWEST + ["b"] * (FEWEST - 1) + [None] * 9
    assert list(chosen_clips(speakers)) == ["a"]
    frames = {i: torch.full((2, 3), float(i)) for i in range(len(speakers))}
    means = means_of_rows(speakers, frames)
    assert torch.equal(means[0], torch.full((3,), (FEWEST - 1) / 2))
    assert means[FEWEST:] == [None] * (len(speakers) - FEWEST)


def test_clips_are_chosen_evenly_over_the_manifest():
    places = chosen_clips(["a"] * 100, clips=5)["a"]
    assert places == [0, 24, 49, 74, 99]


def test_unreadable_clips_are_passed_over():
    speakers = ["a"] * (FEWEST + 1)
    frames = {i: torch.full((1, 2), 2.0) for i in range(FEWEST)}
    assert torch.equal(means_of_rows(speakers, frames)[0], torch.tensor([2.0, 2.0]))
    del frames[0]
    assert means_of_rows(speakers, frames)[0] is None


def test_every_clip_counts_alike_in_its_speakers_mean():
    assert mean_frame([torch.zeros(1, 2), torch.ones(9, 2)]).tolist() == [0.5, 0.5]


def test_what_a_voice_is_like_moves_the_speaker_token_alone():
    made = projector()
    frames, mask = torch.randn(1, 6, 4), torch.ones(1, 6, dtype=torch.bool)
    mean, shift = torch.randn(1, 4), torch.randn(4)
    tokens, _ = made(frames, mask, mean)
    moved, _ = made(frames + shift, mask, mean + shift)
    assert torch.allclose(tokens[:, 1:], moved[:, 1:], atol=1e-5)
    assert not torch.allclose(tokens[:, 0], moved[:, 0], atol=1e-3)


def test_the_speaker_token_is_a_mixture_of_the_words_for_speakers():
    made = projector()
    frames, mask, mean = torch.randn(3, 6, 4), torch.ones(3, 6, dtype=torch.bool), torch.randn(3, 4)
    share = made.speaker_logits(frames, mask, mean).softmax(-1)
    tokens, _ = made(frames, mask, mean)
    assert torch.allclose(tokens[:, 0], (share[:, :1] - share[:, 1:]).expand(3, 6), atol=1e-6)


def test_a_built_model_knows_the_words_for_speakers():
    model, processor = make_model(speaker_relative=True)
    table = model.get_input_embeddings().weight
    ids = processor.tokenizer(" woman", add_special_tokens=False)["input_ids"]
    assert torch.allclose(model.model.multi_modal_projector.speaker_words[0], table[ids].mean(0))


def test_an_unknown_speaker_is_heard_against_the_mean_of_all():
    made = projector()
    frames, mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    unknown, _ = made(frames, mask)
    row_of_nan, _ = made(frames, mask, torch.full((2, 4), torch.nan))
    at_the_mean, _ = made(frames, mask, made.feature_mean.expand(2, 4))
    assert torch.equal(unknown, row_of_nan)
    assert torch.allclose(unknown[:, 1:], at_the_mean[:, 1:], atol=1e-6)
    assert not torch.allclose(unknown[:, 0], at_the_mean[:, 0])  # the clip itself tells who speaks
    assert unknown.isfinite().all()


def test_speakers_are_forgotten_in_training_only():
    made = projector(speaker_dropout=0.999999)
    frames, mask, mean = torch.randn(3, 4, 4), torch.ones(3, 4, dtype=torch.bool), torch.randn(3, 4)
    known, unknown = made(frames, mask, mean)[0], made(frames, mask)[0]
    assert not torch.allclose(known, unknown)
    assert torch.equal(made.train()(frames, mask, mean)[0], unknown)


@pytest.mark.parametrize("layer", [2, "mix"])
def test_captions_of_one_clip_do_not_depend_on_its_batch(layer):
    model, processor = make_model(speaker_relative=True, encoder_layer=layer)
    captioner = Captioner(model, processor)
    clips = [voice(0.4 + 0.1 * i, f0=100 + 30 * i, seed=i) for i in range(FEWEST + 1)]
    clips = [prepare_samples(clip, 16_000) for clip in clips]
    means = captioner.speaker_means(clips, ["a"] * len(clips))
    together = captioner.generate(clips, means, max_new_tokens=6)
    alone = [captioner.generate([c], [m], max_new_tokens=6)[0] for c, m in zip(clips, means)]
    assert together == alone
    assert captioner(clips, speakers="a", max_new_tokens=6, batch_size=2) == together


def test_a_model_that_hears_clips_alone_takes_no_means():
    model, processor = make_model()
    captioner = Captioner(model, processor)
    clips = [voice(0.3, seed=i) for i in range(FEWEST)]
    assert captioner.speaker_means(clips, ["a"] * FEWEST) == [None] * FEWEST
    assert "speaker_means" not in captioner.inputs(clips, [None] * FEWEST)


def test_means_of_files_and_of_cached_features_agree():
    from aligncap.training.caches import speaker_means

    model, processor = make_model(speaker_relative=True)
    clips = [voice(0.3 + 0.1 * i, seed=i) for i in range(FEWEST)]
    mel = processor.log_mel(clips)
    with torch.no_grad():
        pooled = model.model.encode_audio(**mel)
    cache = {str(i): f[m] for i, (f, m) in enumerate(zip(pooled.frames, pooled.mask))}
    voices = speaker_means(cache, [*cache, "0"], ["a"] * (FEWEST + 1))
    heard = Captioner(model, processor).speaker_means(clips, ["a"] * FEWEST)
    assert np.allclose(voices["0"], heard[0], atol=1e-5)


def test_measured_cues_stand_in_the_prompt_of_a_model_that_is_shown_them():
    _, processor = make_model(show_cues=True)
    prompt = processor.prompt_of("pitch low")
    assert "pitch low" in prompt and processor.audio_token in prompt and "<|cues|>" not in prompt
    assert "unknown" in processor.prompt_of(None)
    _, plain = make_model()
    assert plain.prompt_of("pitch low") == plain.prompt


def test_captions_of_a_part_are_those_of_the_whole(tmp_path):
    import soundfile

    from aligncap.inference.batch import Job, caption_jobs

    captioner = Captioner(*make_model(speaker_relative=True))
    jobs = []
    for i in range(FEWEST + 1):
        soundfile.write(tmp_path / f"{i}.wav", voice(0.3 + 0.1 * i, f0=100 + 40 * i, seed=i), 16_000)
        jobs.append(Job(str(i), f"{i}.wav", tmp_path / f"{i}.wav", "made/a"))
    whole, _ = caption_jobs(captioner, jobs, None, {}, 2, max_new_tokens=6)
    part, _ = caption_jobs(captioner, jobs[1:3], None, {}, 2, every=jobs, max_new_tokens=6)
    assert part == whole[1:3]
    alone, _ = caption_jobs(captioner, jobs[1:3], None, {}, 2, max_new_tokens=6)
    assert alone != part  # two clips do not tell who speaks
