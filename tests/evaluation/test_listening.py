"""Proof of listening: who listens gains from the right audio, who does not gains nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.evaluation.evaluate import EvaluateConfig, run_evaluate
from aligncap.evaluation.listening import Listening, audio_gains, table
from aligncap.evaluation.report.html import write_report
from aligncap.evaluation.scoring import Scored, System, differences, score_rows
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
            f"u{i}", ".", f"u{i}.wav", "made", speaker=f"s{i // 2}", emotion=LABELS[i % 4], gender="male",
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


def scored(clips: list[Utterance], *files: list[Row]) -> list[Scored]:
    return [score_rows(rows, clips, wordnet="none") for rows in files]


def gains(
    right: list[list[Row]],
    conditions: dict[str, list[list[Row]]],
    clips: list[Utterance],
) -> Listening:
    heard = {name: scored(clips, *files) for name, files in conditions.items()}
    return audio_gains(scored(clips, *right), heard, clips)


def test_a_listener_gains_by_the_differences_of_its_scores(clips: list[Utterance]) -> None:
    right, silence = hears(clips, right=0.8), of("silence", clips, made="silence")
    found = gains([right], {"silence": [silence]}, clips)
    plain = differences(scored(clips, silence), scored(clips, right))
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
    found = gains([hears(clips)], {"wrong": [wrong]}, clips)
    cell = found.conditions["wrong"]["wrong_gender_share"]
    assert (cell["right"]["value"], cell["heard"]["value"], cell["gain"]["value"]) == (0, 1, 1)
    assert (cell["gain"]["low"], cell["gain"]["high"]) == (1, 1)


def test_seeds_count_together(clips: list[Utterance]) -> None:
    right = [hears(clips, seed, right=0.6) for seed in range(3)]
    noise = [of("noise", clips, made="noise")] * 2
    found = gains(right, {"noise": noise}, clips)
    alone = [gains([rows], {"noise": noise[:1]}, clips).conditions["noise"] for rows in right]
    mean = sum(cells["emotion_uar"]["right"]["value"] for cells in alone) / 3
    cell = found.conditions["noise"]["emotion_uar"]
    assert cell["right"]["value"] == pytest.approx(mean) and cell["heard"]["value"] == 0.25
    assert found.conditions["noise"]["made"] == {"noise": 64}


def test_the_verdict_says_who_listens(clips: list[Utterance]) -> None:
    def told(right: list[Row], **conditions: list[Row]) -> str:
        parts = {name.replace("_", "-"): [rows] for name, rows in conditions.items()}
        return " ".join(gains([right], parts, clips).verdict)

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
    assert Listening({}).verdict[0].startswith("Whether it listens is not shown")
    for i, u in enumerate(clips):
        u.speaker = f"s{i // 8}"
    text = told(hears(clips), wrong=of("wrong", clips))
    assert text.startswith("Whether it listens: no claim (4 speakers); emotion UAR is 1.000 on the right")
    for i, u in enumerate(clips):
        u.emotion, u.speaker = None, f"s{i // 2}"
    assert told(hears(clips), wrong=of("wrong", clips)).startswith("It is not shown to listen: CIDEr-D is")


@pytest.mark.parametrize(("follow", "end"), [("voice", "captions follow the voice"), ("words", "not shown")])
def test_captions_follow_the_voice_or_the_words(clips: list[Utterance], follow: str, end: str) -> None:
    conditions = {"same-words": [swapped(clips, follow)]}
    found = gains([hears(clips)], conditions, clips)
    cell = found.conditions["same-words"]["follows"]["emotion_uar"]
    gap = 1 if follow == "voice" else -1
    assert cell["gain"]["value"] == gap and cell["voice"]["value"] == (gap + 1) / 2
    assert found.conditions["same-words"]["follows"]["clips"] == 32
    assert any(end in text for text in found.verdict)


def test_whispers_have_no_other_clip_to_follow(clips: list[Utterance]) -> None:
    rows = swapped(clips, "voice")[:16] + of("same-words", clips, made="whisper")[16:]
    found = gains([hears(clips)], {"same-words": [rows]}, clips)
    cells = found.conditions["same-words"]
    assert cells["made"] == {"clip": 16, "whisper": 16} and cells["follows"]["clips"] == 16
    alone = of("same-words", clips, made="whisper")
    found = gains([hears(clips)], {"same-words": [alone]}, clips)
    assert "follows" not in found.conditions["same-words"]


def test_captions_of_another_condition_are_refused(clips: list[Utterance]) -> None:
    with pytest.raises(UserError, match=r"given as 'noise' were written of silence"):
        gains([hears(clips)], {"noise": [of("silence", clips)]}, clips)
    with pytest.raises(UserError, match=r"'deaf'.*silence, noise"):
        gains([hears(clips)], {"deaf": [hears(clips)]}, clips)
    with pytest.raises(UserErrors, match="u31"):
        gains([hears(clips)], {"wrong": [of("wrong", clips)[:-1]]}, clips)


def test_missing_conditions_are_told(clips: list[Utterance]) -> None:
    found = gains([hears(clips)], {"noise": [of("noise", clips)]}, clips)
    assert found.missing == ["wrong", "silence", "same-words"]


def test_seeds_have_one_interval_by_joint_draws_wherever_they_are_scored(
    clips: list[Utterance], tmp_path: Path
) -> None:
    """Report, listening and the tables of scripts/reproduce.py pool seeds in one way."""
    from aligncap.evaluation.report.tables import rows_of

    manifest, files = tmp_path / "m.jsonl", []
    write_manifest(manifest, clips)
    for seed in range(3):
        files.append(str(tmp_path / f"right-{seed}.jsonl"))
        write_jsonl(files[-1], hears(clips, seed, right=0.5))
    write_jsonl(tmp_path / "noise.jsonl", of("noise", clips))
    options = {"out": str(tmp_path / "report"), "wordnet": "none", "similarity": "none"}
    run_evaluate(
        EvaluateConfig(
            captions=files[0],
            references=str(manifest),
            system=[f"model={path}" for path in files[1:]],
            listening=[f"noise={tmp_path / 'noise.jsonl'}"],
            **options,
        )
    )
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    runs = [scored(clips, hears(clips, seed, right=0.5))[0].statistics for seed in range(3)]
    for name in ("emotion_uar", "bleu_4", "cider_d", "rubric_score"):
        by_seed = {"model": dict(enumerate(runs))}
        (table,) = rows_of(by_seed, {"model": ("model", "")}, "model", clips, [name])
        wanted = [table["value"], table["low"], table["high"]]
        found = metrics[name], metrics["listening"]["noise"][name]["right"]
        for cell in found:
            assert [cell["value"], cell["low"], cell["high"]] == pytest.approx(wanted), name
        assert metrics[name]["spread"] == pytest.approx(table["spread"]) and metrics[name]["runs"] == 3


def test_table_and_report_hold_every_condition(clips: list[Utterance], tmp_path: Path) -> None:
    conditions = {
        "wrong": [of("wrong", clips)],
        "silence": [of("silence", clips, made="silence")],
        "same-words": [swapped(clips, "voice")],
    }
    found = gains([hears(clips)], conditions, clips)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(table(found))
    text = console.export_text()
    assert "gain +0.750 [0.750, 0.750]" in text
    names = ["right audio", "wrong audio", "silence", "same words", "… by the voice"]
    assert sorted(names, key=text.index) == names
    page = write_report(tmp_path, [System("a", scored(clips, hears(clips)), 50)], clips, listening=found)
    section = page.read_text(encoding="utf-8").split('<h2 id="listening">')[1].split("<h2")[0]
    rows = [row.split("</tr>")[0] for row in section.split('<td class="name">')[1:]]
    assert [row.split("<")[0] for row in rows] == [*names, "silence"]
    assert "+0.750<small>[0.750, 0.750]</small>" in rows[1] and ">1.000<small>" in rows[4]
    assert "(32 captions of other clips, 0 of whispers)" in section and "sad 100 %" in rows[5]


def test_caption_files_become_a_report(clips: list[Utterance], tmp_path: Path, capsys: Any) -> None:
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

    heard = [f"wrong={path('wrong')}", f"noise={path('noise')}", f"wrong={path('older')}"]
    config = EvaluateConfig(
        captions=path("a-0"),
        name="a",
        system=[f"b={path('b')}", f"a={path('a-1')}"],
        references=str(manifest),
        out=str(tmp_path / "report"),
        listening=heard,
        wordnet="none",
    )
    assert run_evaluate(config) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["listening"]) == {"wrong", "noise"}
    assert metrics["listening"]["wrong"]["made"] == {"clip": 64}
    assert metrics["listening_verdict"][0].startswith("It listens: ")
    assert {"bleu_4", "meteor", "emotion_uar", "rubric_score"} <= set(metrics["listening"]["noise"])
    assert not {"distinct_1", "mean_length"} & set(metrics["listening"]["noise"])
    assert metrics["differences"]["a − b"]["emotion_uar"]["value"] > 0.4
    record = json.loads((tmp_path / "report" / "run.json").read_text(encoding="utf-8"))
    assert path("noise") in json.dumps(record) and path("older") in json.dumps(record)
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "It listens: " in text.split('<p class="summary">')[1].split("</p>")[0]
    assert 'src="listening.png"' in text and (tmp_path / "report" / "listening.png").is_file()
    assert f"aligncap caption --model MODEL --manifest {manifest} --condition silence" in text
    assert "--condition noise" not in text
    text = capsys.readouterr().out
    assert "It listens: " in text and "Proof of listening" in text


def test_only_clips_captioned_everywhere_count_where_some_may_be_missing(
    clips: list[Utterance], tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, clips)
    write_jsonl(tmp_path / "right.jsonl", hears(clips)[4:])
    write_jsonl(tmp_path / "noise.jsonl", of("noise", clips, made="noise")[:-4])
    config = EvaluateConfig(
        captions=str(tmp_path / "right.jsonl"),
        references=str(manifest),
        out=str(tmp_path / "report"),
        listening=[f"noise={tmp_path / 'noise.jsonl'}"],
        wordnet="none",
        allow_missing=True,
    )
    run_evaluate(config)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    noise = metrics["listening"]["noise"]
    assert noise["said"]["captions"][0]["count"] == 24
    assert noise["emotion_uar"]["gain"]["value"] == 0.75


def test_where_captions_are_missing_systems_are_scored_on_the_clips_of_all(
    clips: list[Utterance], tmp_path: Path
) -> None:
    manifest, right = tmp_path / "m.jsonl", [{"id": u.id, "caption": sentence(str(u.emotion))} for u in clips]
    write_manifest(manifest, clips)
    write_jsonl(
        tmp_path / "a.jsonl", [{**right[0], "caption": "Nothing."}, *right[1:-1]]
    )  # wrong of the first
    write_jsonl(tmp_path / "b.jsonl", right[1:])
    config = EvaluateConfig(
        captions=str(tmp_path / "a.jsonl"),
        references=str(manifest),
        out=str(tmp_path / "report"),
        system=[f"b={tmp_path / 'b.jsonl'}"],
        wordnet="none",
        allow_missing=True,
    )
    run_evaluate(config)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["signature"]["clips"] == len(clips) - 2 and metrics["emotion_accuracy"]["value"] == 1
    assert metrics["differences"]["model − b"]["emotion_accuracy"]["value"] == 0


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("clam=sad", 'unknown label "clam", nearest is "calm"'),
        ("happy=sad", 'has clips labelled "happy" itself'),
    ],
)
def test_a_label_map_that_does_nothing_is_refused(
    clips: list[Utterance], tmp_path: Path, pair: str, told: str
) -> None:
    write_manifest(tmp_path / "m.jsonl", clips)
    files = {"captions": "c.jsonl", "references": str(tmp_path / "m.jsonl"), "out": str(tmp_path / "report")}
    with pytest.raises(UserErrors, match=told):
        run_evaluate(EvaluateConfig(**files, label_map=[pair]))
