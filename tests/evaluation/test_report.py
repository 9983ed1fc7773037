"""The report: files, safety, and what a reader sees."""

from __future__ import annotations

import json
import struct
import wave
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import table
from aligncap.evaluation.listening import Listening, audio_gains
from aligncap.evaluation.metrics import SCORES
from aligncap.evaluation.report.html import write_report
from aligncap.evaluation.scoring import Baseline, System, evaluate_captions, score_rows
from aligncap.utils.errors import UserError

ATTACK = "<script>alert('x')</script>"
LABELS = ["angry", "sad", "happy", "neutral"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[Utterance]]:
    folder = tmp_path / "corpus"
    folder.mkdir()
    utterances = []
    for i in range(16):
        if i:
            with wave.open(str(folder / f"c {i}.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(struct.pack("<80h", *range(80)))
        label = LABELS[i % 4]
        references = [f"He sounds {label} {ATTACK}.", f"The man is {label}, speaking slowly."]
        utterances.append(
            Utterance(
                f"id{i}",
                "corpus",
                f"c {i}.wav",
                "made",
                speaker=f"s{i // 4}",
                emotion=label,
                captions=references,
            )
        )
    return tmp_path / "m.jsonl", utterances


def captions(utterances: list[Utterance], wrong: int) -> list[dict[str, Any]]:
    said = [u.emotion if i >= wrong else "bored" for i, u in enumerate(utterances)]
    return [
        {"id": u.id, "caption": f"He sounds {e}. {ATTACK}"} for u, e in zip(utterances, said, strict=True)
    ]


def system(name: str, utterances: list[Utterance], *wrong: int) -> System:
    runs = [score_rows(captions(utterances, n), utterances, wordnet="none") for n in wrong]
    return System(name, runs)


def heard(utterances: list[Utterance], condition: str, wrong: int) -> Listening:
    """Of a system with no error in hearing the right audio."""
    right, other = (score_rows(captions(utterances, n), utterances, wordnet="none") for n in (0, wrong))
    return audio_gains([right], {condition: [other]}, utterances)


def test_writes_metrics_pictures_page_and_only_the_clips_shown(made: tuple, tmp_path: Path) -> None:
    manifest, utterances = made
    out = tmp_path / "report"
    page = write_report(
        out,
        [system("sft", utterances, 8), system("distill", utterances, 2, 4)],
        utterances,
        manifest=manifest,
        baselines=[Baseline("probe", {"emotion_uar": 0.77}, "last layer")],
        listening=heard(utterances, "wrong", 15),
        sample=6,
    )
    names = {path.name for path in out.iterdir()}
    pictures = {"confusion_0.png", "confusion_1.png", "speakers.png", "listening.png"}
    assert names == {"metrics.json", "report.html", "audio"} | pictures
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["system"] == "distill" and set(SCORES) <= set(metrics)
    assert metrics["emotion_accuracy"]["value"] == pytest.approx(13 / 16)
    assert metrics["emotion_accuracy"]["spread"] == pytest.approx(2 / 16 / 2**0.5)
    assert metrics["signature"]["clips"] == 16 and len(metrics["systems"]["distill"]["seeds"]) == 2
    assert metrics["baselines"]["probe"]["emotion_uar"]["value"] == 0.77
    sources = [a["src"] for tag, a in parse(page).tags if tag == "source"]
    assert len(list((out / "audio").iterdir())) == len(sources) >= 5
    assert all((out / source).is_file() for source in sources)


def test_text_from_outside_is_escaped_and_nothing_is_loaded_from_elsewhere(
    made: tuple, tmp_path: Path
) -> None:
    manifest, utterances = made
    one = system(ATTACK, utterances, 4)
    page = write_report(tmp_path / "report", [one], utterances, manifest=manifest, sample=16, title=ATTACK)
    tags = parse(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    addresses = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert addresses and not [a for a in addresses if a is None or "//" in a]
    assert "&lt;script&gt;" in page.read_text(encoding="utf-8")


def test_every_caption_is_marked_right_or_wrong_and_a_missing_file_is_named(
    made: tuple, tmp_path: Path
) -> None:
    manifest, utterances = made
    page = write_report(
        tmp_path / "r", [system("sft", utterances, 4)], utterances, manifest=manifest, sample=16
    )
    marks = [
        a.get("class", "")
        for tag, a in parse(page).tags
        if tag == "div" and "caption" in (a.get("class") or "")
    ]
    assert marks.count("caption right") == 12 and marks.count("caption wrong") == 4
    assert "c 0.wav: no such file" in page.read_text(encoding="utf-8")


def test_summary_tells_score_interval_clips_speakers_and_whether_it_listens(
    made: tuple, tmp_path: Path
) -> None:
    _, utterances = made
    page = write_report(
        tmp_path / "r", [system("sft", utterances, 4)], utterances, listening=heard(utterances, "wrong", 16)
    ).read_text(encoding="utf-8")
    summary = page.split('<p class="summary">')[1].split("</p>")[0]
    assert (
        "sft: emotion UAR 0.750 [0.041, 0.995] over 16 clips of 4 speakers (4 labels, chance 0.250)."
        in summary
    )
    assert "no claim (4 speakers); emotion UAR is 1.000 on the right audio and 0.000 on wrong" in summary


def test_a_report_without_proof_of_listening_says_so_and_how_to_have_it(made: tuple, tmp_path: Path) -> None:
    manifest, utterances = made
    page = write_report(tmp_path / "r", [system("a", utterances, 4)], utterances, manifest=manifest)
    text = page.read_text(encoding="utf-8")
    assert "Whether it listens is not shown" in text.split('<p class="summary">')[1].split("</p>")[0]
    for name in ("wrong", "silence", "noise", "same-words"):
        assert f"--condition {name} --out {name}.jsonl" in text and f" {name}={name}.jsonl" in text
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["listening"] == {} and len(metrics["listening_verdict"]) == 1
    assert not (tmp_path / "r" / "listening.png").exists()


def test_what_is_said_of_silence_is_shown_and_escaped(made: tuple, tmp_path: Path) -> None:
    _, utterances = made
    proof = heard(utterances, "silence", 16)
    text = write_report(tmp_path / "r", [system("a", utterances, 4)], utterances, listening=proof).read_text(
        encoding="utf-8"
    )
    section = text.split('<h2 id="listening">')[1].split("<h2")[0]
    assert "bored 100 %" in section and "He sounds bored. &lt;script&gt;" in section
    assert "Not captioned: wrong audio, noise, same words." in section


@pytest.mark.parametrize("how", ["embed", "link"])
def test_audio_embedded_or_linked_copies_nothing(made: tuple, tmp_path: Path, how: Any) -> None:
    manifest, utterances = made
    out = tmp_path / "deep" / "report"
    page = write_report(
        out, [system("sft", utterances, 4)], utterances, manifest=manifest, sample=16, audio=how
    )
    assert not (out / "audio").exists()
    sources = [a["src"] or "" for tag, a in parse(page).tags if tag == "source"]
    assert len(sources) == 15
    if how == "embed":
        assert all(s.startswith("data:audio/wav;base64,") for s in sources)
        pictures = [a["src"] or "" for tag, a in parse(page).tags if tag == "img"]
        assert pictures and all(s.startswith("data:image/png;base64,") for s in pictures)
    else:
        assert "../../corpus/c%201.wav" in sources


def test_samples_depend_on_the_seed_only(made: tuple, tmp_path: Path) -> None:
    _, utterances = made
    one = system("sft", utterances, 4)
    first, again, other = (
        write_report(tmp_path / str(i), [one], utterances, sample=4, seed=seed).read_text(encoding="utf-8")
        for i, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


def test_a_second_report_leaves_no_clip_of_the_first(made: tuple, tmp_path: Path) -> None:
    manifest, utterances = made
    one = system("sft", utterances, 4)
    for number in (16, 3):
        write_report(tmp_path / "r", [one], utterances, manifest=manifest, sample=number)
    assert len(list((tmp_path / "r" / "audio").iterdir())) <= 3


def test_systems_scored_on_other_clips_are_refused_before_anything_is_written(
    made: tuple, tmp_path: Path
) -> None:
    _, utterances = made
    with pytest.raises(UserError, match="different numbers of clips"):
        write_report(tmp_path / "r", [system("a", utterances, 1), system("b", utterances[:8], 1)], utterances)
    with pytest.raises(UserError, match="different names"):
        write_report(tmp_path / "r", [system("a", utterances, 1)] * 2, utterances)
    with pytest.raises(UserError, match="is no metric"):
        write_report(
            tmp_path / "r", [system("a", utterances, 1)], utterances, baselines=[Baseline("p", {"x": 1.0})]
        )
    assert not (tmp_path / "r").exists()


def test_an_audio_path_out_of_its_root_is_refused(made: tuple, tmp_path: Path) -> None:
    manifest, utterances = made
    one = system("sft", utterances, 4)
    utterances[3].audio = "../../etc/passwd"
    with pytest.raises(UserError, match="root"):
        write_report(tmp_path / "r", [one], utterances, manifest=manifest, sample=16)
    assert not (tmp_path / "r").exists()


def test_runs_that_name_different_emotions_add_up(made: tuple, tmp_path: Path) -> None:
    _, utterances = made
    page = write_report(tmp_path / "r", [system("a", utterances, 0, 5)], utterances)
    assert "sum of" not in page.read_text(encoding="utf-8")  # it stands in the picture
    assert (tmp_path / "r" / "confusion_0.png").is_file()


def test_pooling_one_run_changes_nothing(made: tuple) -> None:
    _, utterances = made
    one = system("a", utterances, 3)
    result = evaluate_captions(captions(utterances, 3), utterances, wordnet="none")
    assert all(one.cells[name] == result[name] for name in SCORES)
    assert one.cells["bleu_4"]["spread"] is None and one.cells["bleu_4"]["runs"] == 1


def test_terminal_table_shows_value_and_interval(made: tuple) -> None:
    _, utterances = made
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(table([system("a", utterances, 4)]))
    console.print(table([system("[red]x", utterances, 4, 8)], [Baseline("probe", {"emotion_uar": 0.5})]))
    text = console.export_text()
    assert "Emotion UAR" in text and "0.750 [0.041, 0.995]" in text and "16 clips" in text
    assert "[red]x" in text and "probe" in text and "±" in text


def test_clips_without_labels_make_a_report_without_emotion(made: tuple, tmp_path: Path) -> None:
    _, utterances = made
    for u in utterances:
        u.emotion = None
    page = write_report(
        tmp_path / "r", [system("a", utterances, 4)], utterances, listening=heard(utterances, "wrong", 8)
    )
    assert "no clip has an emotion label" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "r" / "speakers.png").exists()
