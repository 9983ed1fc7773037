"""Proof of listening: who listens gains from the right audio, who does not gains nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.evaluation.evaluate import METRICS, compare_captions
from aligncap.evaluation.listening import audio_gains, compare, counter, lines, picture, table, verdict
from aligncap.evaluation.run import score_files
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import write_jsonl

LABELS = ("angry", "sad", "happy", "neutral")
Row = dict[str, Any]


def sentence(label: str, gender: str = "man") -> str:
    return f"The {gender} sounds {label}, and his voice is steady."


@pytest.fixture
def clips() -> list[Utterance]:
    return [
        Utterance(
            f"u{i}", ".", f"u{i}.wav", "made", speaker=f"s{i // 8}", emotion=LABELS[i % 4], gender="male",
            transcript="Kids are talking.", captions=[sentence(LABELS[i % 4]), f"He is {LABELS[i % 4]}."],
        )
        for i in range(32)
    ]  # fmt: skip


def hears(clips: list[Utterance], seed: int = 0, *, right: float = 1.0) -> list[Row]:
    """A listener's captions; with `right` below 1 some name another emotion."""
    rng = random.Random(seed)
    said = [str(u.emotion) if rng.random() < right else rng.choice(LABELS) for u in clips]
    return [{"id": u.id, "caption": sentence(label)} for u, label in zip(clips, said, strict=True)]


def of(condition: str, clips: list[Utterance], seed: int = 0, **more: Any) -> list[Row]:
    """A listener's captions of what says nothing of the clip."""
    rows = [{"id": u.id, "caption": sentence("sad")} for u in clips]
    return [{**row, "condition": condition, "heard": row["id"], **more} for row in rows]


def swapped(clips: list[Utterance], follow: str) -> list[Row]:
    """Captions of the next clip's voice with the same words: of the voice, or of the words."""
    rows = []
    for i, u in enumerate(clips):
        heard = clips[8 * (i // 8) + (i + 1) % 8]
        said = heard if follow == "voice" else u
        rows.append(
            {"id": u.id, "caption": sentence(str(said.emotion)), "condition": "same-words", "heard": heard.id}
        )
    return rows


def test_a_listener_gains_by_the_differences_of_its_scores(clips: list[Utterance]) -> None:
    right, silence = hears(clips, right=0.8), of("silence", clips, made="silence")
    found = audio_gains([right], {"silence": [silence]}, clips, resamples=50, synonyms="none")
    plain = compare_captions([silence], [right], clips, resamples=50, synonyms="none")
    cells = found.conditions["silence"]
    for name in ("emotion_uar", "cider_d", "rubric_score", "meteor"):
        assert cells[name]["gain"] == pytest.approx(plain[name])
        gain = cells[name]["right"]["value"] - cells[name]["heard"]["value"]
        assert cells[name]["gain"]["value"] == pytest.approx(gain) and gain > 0
    assert cells["emotion_uar"]["heard"]["value"] == 0.25
    assert cells["made"] == {"silence": 32}
    assert cells["said"]["emotions"] == {"sad": 1.0}
    assert cells["said"]["captions"] == [{"caption": sentence("sad"), "count": 32, "share": 1.0}]
    assert json.loads(json.dumps(found.conditions, allow_nan=False)) == found.conditions


def test_where_less_is_better_the_gain_is_turned_round(clips: list[Utterance]) -> None:
    wrong = [{"id": u.id, "caption": f"The woman sounds {u.emotion}."} for u in clips]
    found = audio_gains([hears(clips)], {"wrong": [wrong]}, clips, resamples=50, synonyms="none")
    cell = found.conditions["wrong"]["wrong_gender_share"]
    assert (cell["right"]["value"], cell["heard"]["value"], cell["gain"]["value"]) == (0, 1, 1)
    assert (cell["gain"]["low"], cell["gain"]["high"]) == (1, 1)


def test_seeds_count_together(clips: list[Utterance]) -> None:
    right = [hears(clips, seed, right=0.6) for seed in range(3)]
    noise = [of("noise", clips, made="noise")] * 2
    found = audio_gains(right, {"noise": noise}, clips, resamples=50, synonyms="none")
    alone = [
        audio_gains([rows], {"noise": noise[:1]}, clips, resamples=50, synonyms="none").conditions["noise"]
        for rows in right
    ]
    mean = sum(cells["emotion_uar"]["right"]["value"] for cells in alone) / 3
    cell = found.conditions["noise"]["emotion_uar"]
    assert cell["right"]["value"] == pytest.approx(mean) and cell["heard"]["value"] == 0.25
    assert found.conditions["noise"]["made"] == {"noise": 64}


def test_the_verdict_says_who_listens(clips: list[Utterance]) -> None:
    def told(right: list[Row], **conditions: list[Row]) -> str:
        parts = {name.replace("_", "-"): [rows] for name, rows in conditions.items()}
        return " ".join(audio_gains([right], parts, clips, resamples=100, synonyms="none").verdict)

    deaf = [{"id": u.id, "caption": sentence("sad")} for u in clips]
    text = told(hears(clips), wrong=of("wrong", clips), silence=of("silence", clips, made="silence"))
    assert text.startswith("It listens: emotion UAR is 1.000 on the right audio and falls to 0.250 on wrong")
    assert "Captions of silence name sad (100 %) most often." in text
    assert told(deaf, wrong=deaf).startswith("It is not shown to listen: emotion UAR is 0.250")
    text = told(hears(clips), wrong=of("wrong", clips), noise=hears(clips))
    assert text.startswith("It listens in part: ") and "no fall is shown to 1.000 on noise" in text
    assert "is not shown: captions of wrong audio, silence or noise" in told(
        hears(clips), whisper=hears(clips)
    )
    assert verdict({})[0].startswith("Whether it listens is not shown")
    for u in clips:
        u.emotion = None
    assert told(hears(clips), wrong=of("wrong", clips)).startswith("It is not shown to listen: CIDEr-D is")


@pytest.mark.parametrize(("follow", "end"), [("voice", "captions follow the voice"), ("words", "not shown")])
def test_captions_follow_the_voice_or_the_words(clips: list[Utterance], follow: str, end: str) -> None:
    conditions = {"same-words": [swapped(clips, follow)]}
    found = audio_gains([hears(clips)], conditions, clips, resamples=50, synonyms="none")
    cell = found.conditions["same-words"]["follows"]["emotion_uar"]
    gap = 1 if follow == "voice" else -1
    assert cell["gain"]["value"] == gap and cell["voice"]["value"] == (gap + 1) / 2
    assert found.conditions["same-words"]["follows"]["clips"] == 32
    assert any(end in text for text in found.verdict)


def test_whispers_have_no_other_clip_to_follow(clips: list[Utterance]) -> None:
    rows = swapped(clips, "voice")[:16] + of("same-words", clips, made="whisper")[16:]
    found = audio_gains([hears(clips)], {"same-words": [rows]}, clips, resamples=50, synonyms="none")
    cells = found.conditions["same-words"]
    assert cells["made"] == {"clip": 16, "whisper": 16} and cells["follows"]["clips"] == 16
    alone = of("same-words", clips, made="whisper")
    found = audio_gains([hears(clips)], {"same-words": [alone]}, clips, resamples=50, synonyms="none")
    assert "follows" not in found.conditions["same-words"]


def test_captions_of_another_condition_are_refused(clips: list[Utterance]) -> None:
    with pytest.raises(UserError, match=r"given as 'noise' were written of silence"):
        audio_gains([hears(clips)], {"noise": [of("silence", clips)]}, clips)
    with pytest.raises(UserError, match=r"'deaf'.*silence, noise"):
        audio_gains([hears(clips)], {"deaf": [hears(clips)]}, clips)
    with pytest.raises(UserErrors, match="u31"):
        audio_gains([hears(clips)], {"wrong": [of("wrong", clips)[:-1]]}, clips, synonyms="none")


def test_missing_conditions_are_told(clips: list[Utterance]) -> None:
    found = audio_gains([hears(clips)], {"noise": [of("noise", clips)]}, clips, resamples=9, synonyms="none")
    assert found.missing == ("wrong", "silence", "same-words")


def test_scored_once_gives_what_scoring_again_gives(clips: list[Utterance]) -> None:
    first, second = hears(clips, 1, right=0.4), hears(clips, 2, right=0.7)
    count = counter(clips, synonyms="none")
    assert count(first) is count(first)
    again = compare([count(first)], [count(second)], resamples=50, seed=3)
    assert again == compare_captions([first], [second], clips, resamples=50, seed=3, synonyms="none")


def test_table_lines_and_picture_hold_every_condition(clips: list[Utterance]) -> None:
    conditions = {
        "wrong": [of("wrong", clips)],
        "silence": [of("silence", clips, made="silence")],
        "same-words": [swapped(clips, "voice")],
    }
    found = audio_gains([hears(clips)], conditions, clips, resamples=50, synonyms="none").conditions
    names = [line["name"] for line in lines(found)]
    assert names == ["right audio", "wrong audio", "silence", "same words", "… by the voice"]
    assert lines(found)[1]["cells"][0]["gain"]["value"] == "+0.750"
    assert lines(found)[4]["cells"][0]["value"] == "1.000"
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(table(found))
    assert "gain +0.750 [0.750, 0.750]" in console.export_text()
    assert picture(found, 0.25).startswith(b"\x89PNG")


def test_caption_files_become_a_report(clips: list[Utterance], tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, clips)
    files = {
        "a-0": hears(clips, 0, right=0.9),
        "a-1": hears(clips, 1, right=0.9),
        "b": hears(clips, 2, right=0.1),
        "wrong": of("wrong", clips),
        "older": [{"id": u.id, "caption": sentence("happy")} for u in clips],
        "noise": of("noise", clips, made="noise"),
    }
    for name, rows in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)

    def path(name: str) -> str:
        return str(tmp_path / f"{name}.jsonl")

    printed, _, page = score_files(
        [("b", [path("b")]), ("a", [path("a-0"), path("a-1")])],
        manifest,
        tmp_path / "report",
        listening={"wrong": [path("wrong")], "noise": [path("noise")]},
        wrong_audio=[path("older")],
        resamples=20,
        wordnet="none",
    )
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["listening"]) == {"wrong", "noise"}
    assert metrics["listening"]["wrong"]["made"] == {"clip": 64}
    assert metrics["listening_verdict"][0].startswith("It listens: ")
    assert set(METRICS) - {"distinct_1", "distinct_2", "mean_length"} <= set(metrics["listening"]["noise"])
    assert metrics["differences"]["a − b"]["emotion_uar"]["value"] > 0.4
    record = json.loads((tmp_path / "report" / "run.json").read_text(encoding="utf-8"))
    assert path("noise") in json.dumps(record) and path("older") in json.dumps(record)
    text = page.read_text(encoding="utf-8")
    assert "It listens: " in text.split('<p class="summary">')[1].split("</p>")[0]
    assert 'src="listening.png"' in text and (tmp_path / "report" / "listening.png").is_file()
    assert f"aligncap caption --model MODEL --manifest {manifest} --heard silence" in text
    assert "--heard noise" not in text
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(printed)
    text = console.export_text()
    assert "It listens: " in text and "Proof of listening" in text


def test_only_clips_captioned_everywhere_count_where_some_may_be_missing(
    clips: list[Utterance], tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, clips)
    write_jsonl(tmp_path / "right.jsonl", hears(clips)[4:])
    write_jsonl(tmp_path / "noise.jsonl", of("noise", clips, made="noise")[:-4])
    score_files(
        [("a", [str(tmp_path / "right.jsonl")])],
        manifest,
        tmp_path / "report",
        listening={"noise": [str(tmp_path / "noise.jsonl")]},
        resamples=20,
        wordnet="none",
        allow_missing=True,
    )
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    noise = metrics["listening"]["noise"]
    assert noise["said"]["captions"][0]["count"] == 24
    assert noise["emotion_uar"]["gain"]["value"] == 0.75
