import json

import numpy as np
import pytest
import soundfile
import torch
from tiny import make_model, voice
from transformers import TextStreamer

from aligncap import Captioner
from aligncap.inference.batch import caption_jobs
from aligncap.inference.jobs import Job, jobs_of_files, with_condition
from aligncap.text.emotions import labels
from aligncap.utils.errors import UserError
from aligncap.utils.journal import Journal

OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def captioner():
    return Captioner(*make_model(seed=3))


@pytest.fixture
def clips(tmp_path):
    paths = []
    for i, seconds in enumerate((0.5, 1.7, 0.9)):
        paths.append(tmp_path / f"c{i}.wav")
        soundfile.write(paths[-1], voice(seconds, 100 + 60 * i), 16_000)
    return paths


def test_one_clip_gives_a_caption_and_a_list_gives_captions_in_order(captioner, clips):
    together = captioner(clips, batch_size=2, **OPTIONS)
    assert together == [captioner(path, **OPTIONS) for path in clips]
    assert all(isinstance(caption, str) for caption in together)


def sound(kind: str) -> tuple[np.ndarray, int, str]:
    """A loud clip off centre: samples as somebody may hold them, their rate, the subtype of such a file."""
    x = 3 * voice(1.3, 130) + 0.1
    stereo = np.stack([x, 0.5 * x])
    return {
        "float32": (x, 16_000, "FLOAT"),
        "float64": (x.astype(np.float64), 16_000, "DOUBLE"),
        "int16": (np.round(x * 32767).astype(np.int16), 16_000, "PCM_16"),
        "int32": (np.round(x.astype(np.float64) * 2**31 * 0.9).astype(np.int32), 16_000, "PCM_32"),
        "stereo, 48 kHz": (np.repeat(stereo, 3, axis=1), 48_000, "FLOAT"),
        "tensor": (torch.from_numpy(stereo), 22_050, "FLOAT"),
    }[kind]


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "int32", "stereo, 48 kHz", "tensor"])
def test_a_file_and_its_samples_are_heard_alike(captioner, kind, tmp_path, monkeypatch):
    samples, rate, subtype = sound(kind)
    soundfile.write(tmp_path / "clip.wav", np.asarray(samples).T, rate, subtype=subtype)
    heard = []
    log_mel = captioner.processor.features
    monkeypatch.setattr(
        type(captioner.processor), "features", lambda self, clips: heard.append(clips[0]) or log_mel(clips)
    )
    options = {"max_new_tokens": 12, "sampling_rate": rate}
    assert captioner(samples, **options) == captioner(tmp_path / "clip.wav", **options)
    np.testing.assert_allclose(heard[0], heard[1], atol=1e-6)
    assert np.abs(heard[0]).max() < 1 and abs(heard[0].mean()) < 1e-4


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.full(16_000, np.nan, np.float32), "NaN"),
        (np.append(voice(1.0), np.inf), "NaN or infinite"),
        (np.zeros(0, np.float32), "0.000 s"),
        (voice(1.0) * 32768, "full scale is 1"),
        (np.zeros((2, 3, 16_000), np.float32), "not sound"),
        (np.zeros(16_000, np.int64), "no known full scale"),
        (torch.zeros(16_000), "silent"),
        (voice(0.05), "below 0.1 s"),
    ],
)
def test_samples_that_are_no_speech_are_one_clear_line(captioner, samples, message):
    with pytest.raises(UserError, match=message) as caught:
        captioner(samples)
    assert "\n" not in str(caught.value)


def test_speakers_must_be_as_many_as_clips(captioner, clips):
    with pytest.raises(UserError, match="speakers: 2 for 3 clips"):
        captioner(clips, speakers=["a", "b"])
    with pytest.raises(UserError, match="speakers: 2 for 1 clips"):
        captioner(clips[0], speakers=["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"num_beams": -1}, "num_beams=-1: must be at least 1"),
        ({"temperature": 0.0, "do_sample": True}, "temperature=0.0: must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 1.5}, "top_p=1.5: must be above 0 and at most 1"),
        ({"num_beams": "4"}, "num_beams=4"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"temprature": 0.5}, 'no option .temprature., nearest is "temperature"'),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused_before_a_file_is_opened(captioner, options, message):
    with pytest.raises(UserError, match=message):
        captioner(["there is none.wav"], **options)


def test_captions_are_as_long_as_the_model_was_trained_to_answer(captioner, clips, monkeypatch):
    limits = []
    generate = type(captioner.model).generate

    def watched(self, **options):
        limits.append(options["max_new_tokens"])
        return generate(self, **options)

    monkeypatch.setattr(type(captioner.model), "generate", watched)
    monkeypatch.setattr(captioner.model.config, "max_response_tokens", 5)
    captioner(clips[0])
    captioner(clips[0], max_new_tokens=None)
    captioner(clips[0], max_new_tokens=7)
    assert limits == [5, 5, 7]


def test_from_pretrained_reads_a_saved_model(captioner, clips, tmp_path):
    captioner.model.save_pretrained(tmp_path / "m")
    captioner.processor.save_pretrained(tmp_path / "m")
    again = Captioner.from_pretrained(tmp_path / "m", device="cpu")
    assert again(clips, **OPTIONS) == captioner(clips, **OPTIONS)
    with pytest.raises(UserError, match="bfloat16"):
        Captioner.from_pretrained(tmp_path / "m", dtype="int8")


def test_a_bad_clip_is_an_error_that_names_it(captioner, clips, tmp_path):
    with pytest.raises(UserError, match=r"gone\.wav"):
        captioner([clips[0], tmp_path / "gone.wav"], **OPTIONS)


def jobs(clips):
    return [Job(p.stem, str(p), p) for p in clips]


def test_bad_files_are_reported_and_the_rest_captioned(captioner, clips, tmp_path):
    clips[1].write_text("not sound")
    rows, errors = caption_jobs(captioner, jobs(clips), tmp_path / "out.jsonl", {}, 2, **OPTIONS)
    assert [row["id"] for row in rows] == ["c0", "c2"]
    assert len(errors) == 1 and "c1.wav" in errors[0]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


def test_after_a_file_is_mended_only_its_batch_is_captioned(captioner, clips, tmp_path, monkeypatch):
    sound, said = clips[1].read_bytes(), []
    generate = Captioner.generate

    def counted(self, samples, *known, **options):
        said.append(len(samples))
        return generate(self, samples, *known, **options)

    monkeypatch.setattr(Captioner, "generate", counted)
    out = tmp_path / "out.jsonl"
    clips[1].write_text("not sound")
    caption_jobs(captioner, jobs(clips), out, {}, 1, **OPTIONS)
    clips[1].write_bytes(sound)
    rows, errors = caption_jobs(captioner, jobs(clips), out, {}, 1, **OPTIONS)
    assert said == [1, 1, 1] and [row["id"] for row in rows] == ["c0", "c1", "c2"] and not errors
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.jsonl"]


def test_a_killed_run_goes_on_where_it_stopped(captioner, clips, tmp_path):
    whole, _ = caption_jobs(captioner, jobs(clips), tmp_path / "whole.jsonl", {"a": 1}, 1, **OPTIONS)
    calls = []

    class Dying(Captioner):
        def generate(self, samples, *known, **options):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(samples))
            return super().generate(samples, *known, **options)

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        caption_jobs(Dying(captioner.model, captioner.processor), jobs(clips), out, {"a": 1}, 1, **OPTIONS)
    assert not out.exists()
    with (tmp_path / "out.jsonl.partial").open("a") as file:
        file.write('{"key": "torn')  # a kill in mid-line
    calls.clear()
    rows, _ = caption_jobs(
        Dying(captioner.model, captioner.processor), jobs(clips), out, {"a": 1}, 1, **OPTIONS
    )
    assert rows == whole and len(calls) == 1
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_partial_file_of_other_settings_is_not_taken_up(tmp_path):
    journal = Journal(tmp_path / "o", {"model": 1})
    journal.write({"k": {"id": "k"}})
    journal.close(done=False)
    assert Journal(tmp_path / "o", {"model": 1}).rows == {"k": {"id": "k"}}
    assert Journal(tmp_path / "o", {"model": 2}).rows == {}


def test_a_stopped_run_outlives_a_run_of_other_settings(tmp_path, capsys):
    for model in (1, 2, 1, 2):  # each stopped
        journal = Journal(tmp_path / "o", {"model": model})
        journal.write({f"k{len(journal.rows)}": model})
        journal.close(done=False)
    assert Journal(tmp_path / "o", {"model": 1}).rows == {"k0": 1, "k1": 1}
    journal = Journal(tmp_path / "o", {"model": 2})
    assert journal.rows == {"k0": 2, "k1": 2}
    assert "o.partial: of other settings; kept as o.partial." in capsys.readouterr().err
    journal.close(done=True)
    assert not list(tmp_path.iterdir())


def test_wrong_audio_leaves_no_clip_in_its_place(clips):
    for seed in range(20):
        shuffled = with_condition(jobs(clips), [], "wrong", seed)
        assert sorted(j.path for j in shuffled) == sorted(clips)
        assert all(wrong.path != job.path and wrong.id == job.id for wrong, job in zip(shuffled, jobs(clips)))


def test_folders_are_searched_and_empty_ones_refused(clips, tmp_path):
    assert [job.path for job in jobs_of_files([str(tmp_path)])] == sorted(clips)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no sound files"):
        jobs_of_files([str(tmp_path / "empty")])


def test_sampling_follows_its_seed(captioner):
    clips = [voice(0.8)]
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(captioner.generate(clips, do_sample=True, max_new_tokens=20))
    assert made[0] == made[1] != made[2]


def test_clips_longer_than_the_model_takes_are_refused(captioner):
    with pytest.raises(UserError, match="cut it"):
        captioner(np.tile(voice(1.0), 31))


def test_captions_name_no_emotion_but_the_allowed(captioner, clips):
    assert captioner._words_outside(labels()) == []
    banned = captioner._words_outside(["angry"])
    words = [captioner.processor.tokenizer.decode(row).strip().lower() for row in banned]
    assert "calm" in words and "sadly" in words and "angry" not in words
    with pytest.raises(UserError, match="no emotion words"):
        captioner.generate([np.zeros(16_000, np.float32)], emotions=["angri"])


# -------------------------------------------------------------------------------------------- proofreading


def scripted(captioner, greedy, beams):
    """A `generate` that writes `greedy`, one caption a clip, and `beams`, the captions of every search."""
    tokenizer = captioner.processor.tokenizer

    def generate(self, input_ids, **options):
        number = options.get("num_beams", 1)
        rows = [text for _ in input_ids for text in beams] if number > 1 else greedy[: len(input_ids)]
        written = tokenizer(rows, padding=True, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids.repeat_interleave(number, 0), written], 1)

    return generate


GOOD, TWICE, APART = "He sounds angry.", "He is sad and sad.", "He is sad, with a joyful voice."


@pytest.mark.parametrize(
    ("greedy", "beams", "wanted"),
    [
        ([GOOD], [APART] * 4, [GOOD]),  # nothing is wrong with it
        ([GOOD, TWICE], [TWICE, APART, "She sounds happy.", GOOD], [GOOD, "She sounds happy."]),
        ([APART], [TWICE] * 4, [APART]),  # no better one is found
        (["He is loud."], ["A calm, soft and steady voice."] * 4, ["He is loud."]),  # reads no emotions
    ],
)
def test_a_caption_at_fault_is_written_again(captioner, monkeypatch, greedy, beams, wanted):
    monkeypatch.setattr(type(captioner.model), "generate", scripted(captioner, greedy, beams))
    monkeypatch.setattr(captioner, "proofread", True)
    clips = [voice(0.5 + 0.2 * i) for i in range(len(greedy))]
    assert captioner.generate(clips) == wanted
    assert captioner.generate(clips, num_beams=1) == wanted
    monkeypatch.setattr(captioner, "proofread", False)
    assert captioner.generate(clips) == greedy


def test_a_model_that_reads_emotions_is_to_name_one(captioner, monkeypatch):
    monkeypatch.setattr(captioner, "proofread", True)
    monkeypatch.setattr(captioner.model.config, "emotions", ["sad", "angry"])
    assert captioner.at_fault("He is loud.") and not captioner.at_fault("He is angry.")
    assert captioner.at_fault("He is sad and loud and sad.") and not captioner.at_fault("他听起来很生气。")


def test_proofread_batches_equal_single_clips_and_sampling_is_left_alone(captioner, monkeypatch):
    searched = []
    generate = type(captioner.model).generate

    def watched(self, *given, **options):
        searched.append(options.get("num_beams"))
        return generate(self, *given, **options)

    monkeypatch.setattr(type(captioner.model), "generate", watched)
    monkeypatch.setattr(captioner, "proofread", True)
    monkeypatch.setattr(type(captioner), "at_fault", lambda self, text: text[:1] < "a")
    clips = [voice(seconds, f0) for seconds, f0 in ((0.5, 110), (1.2, 180), (0.8, 240))]
    together = captioner.generate(clips, **OPTIONS)
    assert 4 in searched and together == [captioner.generate([clip], **OPTIONS)[0] for clip in clips]
    streamer = TextStreamer(captioner.processor.tokenizer)  # which no search with beams takes
    assert captioner.generate(clips[:1], streamer=streamer, **OPTIONS) == together[:1]
    searched.clear()
    captioner.generate(clips, do_sample=True, **OPTIONS)
    captioner.generate(clips, num_beams=2, **OPTIONS)
    assert searched == [None, 2]
