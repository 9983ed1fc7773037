"""What is heard in place of a clip, and what the output says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import voice

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, write_manifest
from aligncap.inference.batch import caption_jobs
from aligncap.inference.jobs import CONDITIONS, Job, jobs_of_manifest, with_condition
from aligncap.utils.errors import UserError, UserErrors

EMOTIONS = ("angry", "sad", "happy")


class Ear:
    """Stands in for a captioner: its caption is what it was given."""

    class processor:
        max_seconds = 30.0

    def __init__(self) -> None:
        self.told: dict[str, tuple[Any, Any]] = {}  # by caption
        self.stop_after: int | None = None

    def contexts(self, audio: Sequence[Path], groups: Sequence[str | None], kind: str, **_: Any) -> list[Any]:
        return list(groups)

    def generate(
        self, clips: list[np.ndarray], contexts: Sequence[Any], cues: Sequence[Any], emotions: Sequence[str]
    ) -> list[str]:
        if self.stop_after == 0:
            raise KeyboardInterrupt
        self.stop_after = None if self.stop_after is None else self.stop_after - 1
        captions = [caption_of(clip) for clip in clips]
        self.told |= dict(zip(captions, zip(contexts, cues)))
        return captions


ANOTHER = ("same-speaker", "same-emotion")


def caption_of(clip: np.ndarray) -> str:
    return f"{len(clip)} samples, {np.abs(clip).sum():.4f}"


@pytest.fixture
def manifest(tmp_path: Path) -> tuple[Path, list[Utterance]]:
    """Two sentences by two men and a woman in three emotions each, and one sentence of its own."""
    utterances: list[Utterance] = []
    for speaker, gender in (("a", "male"), ("b", "male"), ("c", "female")):
        for words in ("Kids are talking.", "Dogs are sitting."):
            for emotion in EMOTIONS:
                name = f"{speaker}-{words[:4]}-{emotion}"
                soundfile.write(tmp_path / f"{name}.wav", voice(0.3, 100 + len(utterances)), 16_000)
                utterances.append(
                    Utterance(
                        name, ".", f"{name}.wav", "x", speaker=speaker, gender=gender, emotion=emotion,
                        transcript=words.upper() if emotion == "sad" else words,
                    )
                )  # fmt: skip
    soundfile.write(tmp_path / "lone.wav", voice(0.4), 16_000)
    utterances.append(
        Utterance(
            "lone", ".", "lone.wav", "x", speaker="a", emotion="sad", transcript="Nobody else says this."
        )
    )
    write_manifest(tmp_path / "m.jsonl", utterances)
    return tmp_path / "m.jsonl", utterances


def test_jobs_of_a_manifest_name_the_speaker(manifest: tuple[Path, list[Utterance]]) -> None:
    jobs = jobs_of_manifest(manifest[0], "speaker")
    assert jobs[0].group == "x/a" and jobs[0].condition == "right"
    assert with_condition(jobs, manifest[1], "right") == jobs
    assert jobs[0].row("c") == {"id": jobs[0].id, "audio": jobs[0].audio, "caption": "c"}


def test_wrong_audio_says_whose_clip_and_voice_is_heard(manifest: tuple[Path, list[Utterance]]) -> None:
    jobs = jobs_of_manifest(manifest[0], "speaker")
    known = {job.id: job for job in jobs}
    wrong = with_condition(jobs, manifest[1], "wrong", 3)
    assert wrong == with_condition(jobs, [], "wrong", 3) != with_condition(jobs, [], "wrong", 4)
    for job in wrong:
        heard = known[job.heard or ""]
        assert job.heard != job.id and (job.path, job.group) == (heard.path, heard.group)
        assert job.row("c")["condition"] == "wrong" and "made" not in job.row("c")


def test_same_words_are_heard_with_another_emotion_of_the_same_speaker(
    manifest: tuple[Path, list[Utterance]],
) -> None:
    path, utterances = manifest
    known = {u.id: u for u in utterances}
    jobs = jobs_of_manifest(path, "speaker")
    swapped = with_condition(jobs, utterances, "same-words", 0)
    for job, old in zip(swapped[:-1], jobs, strict=False):
        own, heard = known[job.id], known[job.heard or ""]
        assert (own.transcript or "").lower() == (heard.transcript or "").lower()
        assert own.speaker == heard.speaker and own.emotion != heard.emotion
        assert job.made is None and job.path != old.path
    assert (swapped[-1].made, swapped[-1].heard, swapped[-1].path) == ("whisper", "lone", jobs[-1].path)
    assert swapped == with_condition(jobs, utterances, "same-words", 0)
    assert swapped != with_condition(jobs, utterances, "same-words", 1)


def test_same_words_fall_back_on_the_same_gender_and_then_on_a_whisper(
    manifest: tuple[Path, list[Utterance]],
) -> None:
    path, utterances = manifest
    kept = [u for u in utterances if u.id in ("a-Kids-sad", "b-Kids-angry", "b-Kids-sad", "c-Kids-happy")]
    jobs = [job for job in jobs_of_manifest(path, "speaker") if job.id in {u.id for u in kept}]
    heard = {job.id: job for job in with_condition(jobs, kept, "same-words", 0)}
    assert heard["a-Kids-sad"].heard == "b-Kids-angry" and heard["a-Kids-sad"].group == "x/b"
    assert heard["b-Kids-angry"].heard == "b-Kids-sad"
    assert heard["c-Kids-happy"].made == "whisper" and heard["c-Kids-happy"].group is None
    assert all(job.made == "whisper" for job in with_condition(jobs, [], "same-words"))


def test_another_clip_of_the_speaker_or_of_the_emotion(manifest: tuple[Path, list[Utterance]]) -> None:
    path, utterances = manifest
    known = {u.id: u for u in utterances}
    jobs = [job for job in jobs_of_manifest(path, "speaker") if job.id != "lone"]
    for job in with_condition(jobs, utterances, "same-speaker", 0):
        own, heard = known[job.id], known[job.heard or ""]
        assert own.speaker == heard.speaker and own.emotion != heard.emotion and job.made is None
    for job in with_condition(jobs, utterances, "same-emotion", 0):
        own, heard = known[job.id], known[job.heard or ""]
        assert own.speaker != heard.speaker and own.emotion == heard.emotion and job.made is None
        alike = [u for u in utterances if u.speaker != own.speaker and u.emotion == own.emotion]
        assert heard.gender == own.gender or all(u.gender != own.gender for u in alike if u.id != "lone")
    for condition in ANOTHER:
        whole = with_condition(jobs, utterances, condition, 0)
        assert whole == with_condition(jobs, utterances, condition, 0)
        assert whole != with_condition(jobs, utterances, condition, 1)
        with pytest.raises(UserErrors, match=f"{jobs[0].id}: no other clip for --condition {condition}"):
            with_condition(jobs[:1], utterances, condition)


def test_an_unknown_condition_is_refused_and_named(manifest: tuple[Path, list[Utterance]]) -> None:
    with pytest.raises(UserError, match="silence, noise"):
        with_condition(jobs_of_manifest(manifest[0], "speaker"), [], "muffled")


@pytest.mark.parametrize("condition", [c for c in CONDITIONS if c not in ("right", *ANOTHER)])
def test_rows_say_what_was_heard(
    condition: str, manifest: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    path, utterances = manifest
    jobs = with_condition(jobs_of_manifest(path, "speaker"), utterances, condition, 0)
    ear: Any = Ear()
    rows, errors = caption_jobs(ear, jobs, tmp_path / "out.jsonl", {}, 2)
    assert not errors and [row["id"] for row in rows] == [job.id for job in jobs]
    assert all(row["condition"] == condition and row["heard"] == job.heard for row, job in zip(rows, jobs))
    assert [row.get("made") for row in rows] == [job.made for job in jobs]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    for row, job in zip(rows, jobs, strict=True):
        plain = caption_of(load_audio(job.path))
        assert (row["caption"] == plain) == (job.made is None)
        assert row["caption"].split()[0] == plain.split()[0]  # made sound lasts as long as the clip
    if condition == "silence":
        assert all(row["caption"].endswith(" 0.0000") for row in rows)


def test_made_sound_does_not_depend_on_the_company_it_is_in(
    manifest: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    jobs = with_condition(jobs_of_manifest(manifest[0], "speaker"), manifest[1], "noise", 5)
    ear: Any = Ear()
    together = {row["id"]: row["caption"] for row in caption_jobs(ear, jobs, None, {}, 2)[0]}
    alone = {job.id: caption_jobs(ear, [job], None, {}, 1)[0][0]["caption"] for job in jobs}
    other = with_condition(jobs_of_manifest(manifest[0], "speaker"), manifest[1], "noise", 6)
    assert together == alone
    assert len(set(alone.values())) == len(jobs)
    assert together != {row["id"]: row["caption"] for row in caption_jobs(ear, other, None, {}, 2)[0]}


def test_speaker_and_cues_are_those_of_what_is_heard(manifest: tuple[Path, list[Utterance]]) -> None:
    jobs = [replace(job, cues=f"cues of {job.id}") for job in jobs_of_manifest(manifest[0], "speaker")]
    known = {job.id: job for job in jobs}
    for condition in CONDITIONS:
        if condition in ANOTHER:
            continue
        changed = with_condition(jobs, manifest[1], condition)
        ear: Any = Ear()
        caption_jobs(ear, changed, None, {}, 4, every=jobs, kind="speaker")
        for job in changed:
            heard = known[job.heard or job.id]
            wanted = (None, None) if job.made else (heard.group, heard.cues)
            assert ear.told[caption_of(job.sound(30.0))] == wanted


def test_a_bad_file_under_a_condition_is_reported_and_the_rest_captioned(
    manifest: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    jobs = with_condition(jobs_of_manifest(manifest[0], "speaker")[:4], manifest[1], "whisper")
    jobs[1].path.write_text("not sound")
    ear: Any = Ear()
    rows, errors = caption_jobs(ear, jobs, None, {}, 2)
    assert [row["id"] for row in rows] == [jobs[0].id, jobs[2].id, jobs[3].id]
    sizes = [len(load_audio(jobs[i].path)) for i in (0, 2, 3)]
    assert [int(row["caption"].split()[0]) for row in rows] == sizes
    assert len(errors) == 1 and jobs[1].path.name in errors[0]


def test_a_stopped_run_of_made_sound_goes_on_where_it_stopped(
    manifest: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    jobs = with_condition(jobs_of_manifest(manifest[0], "speaker"), manifest[1], "noise")
    ear: Any = Ear()
    whole, _ = caption_jobs(ear, jobs, None, {}, 1)
    ear = Ear()
    ear.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        caption_jobs(ear, jobs, tmp_path / "o.jsonl", {"heard": "noise"}, 1)
    ear = Ear()
    rows, _ = caption_jobs(ear, jobs, tmp_path / "o.jsonl", {"heard": "noise"}, 1)
    assert rows == whole and len(ear.told) == len(jobs) - 5


def test_a_job_is_kept_under_all_that_is_heard() -> None:
    clip = Job("a", "a.wav", Path("a.wav"))
    made = [with_condition([clip], [], kind, seed)[0].key for kind in ("noise", "whisper") for seed in (0, 1)]
    assert len({clip.key, *made}) == 5


@pytest.mark.parametrize("condition", ["silence", "noise", "whisper"])
def test_nothing_of_a_voice_comes_beside_made_sound(
    condition: str, manifest: tuple[Path, list[Utterance]]
) -> None:
    jobs = with_condition(jobs_of_manifest(manifest[0], "speaker"), manifest[1], condition)
    assert {(job.group, job.cues) for job in jobs} == {(None, None)}
