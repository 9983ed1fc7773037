"""Pictures: what is drawn, not only that something is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aligncap.evaluation.report import pictures
from aligncap.evaluation.report.pictures import named_runs, speakers_picture, training_curves
from aligncap.utils import drawing
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.errors import UserErrors


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures themselves, in the order in which they are drawn."""
    drawn: list = []

    def keep(figure) -> bytes:
        drawn.append(figure)
        return b""

    for module in (pictures, drawing):
        monkeypatch.setattr(module, "png", keep)
    return drawn


def log(folder: Path, losses: dict[int, float], **more) -> Path:
    folder.mkdir()
    rows = [{"step": step, "loss": loss, "learning_rate": 1e-3} for step, loss in losses.items()]
    (folder / "log.jsonl").write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    return folder


def test_png_files_come_out(tmp_path):
    out = training_curves({"a $x$": [log(tmp_path / "r", {1: 2.0})]}, tmp_path / "c.png")
    matrix = np.eye(2, 3, dtype=np.int64)
    for png in (
        out.read_bytes(),
        speakers_picture({"a": {"s1": 0.5, "s2": 0.7}}, 0.25),
        confusion_picture(matrix, ["x", "y"], ["x", "y", "none"], "$"),
    ):
        assert png.startswith(b"\x89PNG")


def test_seeds_are_thin_and_their_mean_over_common_steps_is_thick(tmp_path, figures):
    runs = [log(tmp_path / "a-0", {1: 1.0, 2: 2.0, 3: 9.0}), log(tmp_path / "a-1", {1: 3.0, 2: 4.0})]
    training_curves({"a": runs}, tmp_path / "c.png")
    axes = next(a for a in figures[0].axes if a.get_title(loc="left") == "training loss")
    *seeds, mean = [line for line in axes.lines if len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in seeds] == [[1, 2, 9], [3, 4]]
    assert list(mean.get_ydata()) == [2, 3]
    assert mean.get_linewidth() > 2 * seeds[0].get_linewidth()
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["a (2 seeds)"]


def test_only_curves_that_a_log_holds_get_a_panel(tmp_path, figures):
    one = log(tmp_path / "one", {1: 1.0})
    two = log(tmp_path / "two", {1: 1.0}, eval_uar=0.5)
    (two / "align.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n')
    training_curves({"one": [one], "two": [two]}, tmp_path / "c.png")
    titles = [a.get_title(loc="left") for a in figures[0].axes if a.axison]
    assert titles == [pictures.CURVES[k] for k in ("align", "loss", "eval_uar", "learning_rate")]


def test_of_a_step_logged_twice_the_later_counts(tmp_path):
    run = log(tmp_path / "r", {1: 1.0})
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 7.0}\n')
    assert pictures._curves_of(run)["loss"].to_dict() == {1: 7.0}


def test_folders_without_a_log_are_all_named(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "log.jsonl").write_text("")
    with pytest.raises(UserErrors) as caught:
        training_curves({"a": [tmp_path / "none", empty]}, tmp_path / "c.png")
    assert len(caught.value.errors) == 2 and str(empty) in caught.value.errors[1]
    assert not (tmp_path / "c.png").exists()


def test_runs_are_grouped_by_name_and_seeds_by_their_folder():
    runs = named_runs(["runs/sft-0", "runs/sft-1", "best=runs/x-0", "best=runs/x-1"])
    assert {name: len(folders) for name, folders in runs.items()} == {"sft": 2, "best": 2}


def test_a_dot_a_speaker_and_seed_and_speakers_in_one_order(figures):
    systems = {"a": {"c-10": [0.2, 0.4], "c-9": [0.6, 0.8]}, "b": {"c-9": 0.5}}
    speakers_picture(systems, 0.25)
    axes = figures[0].axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [sorted(d.get_ydata()) for d in dots] == [[0.6, 0.8], [0.2, 0.4], [0.5]]
    assert [t.get_text() for t in axes.get_xticklabels(minor=True)] == ["9", "10", "9", "10"]
    texts = [t.get_text() for t in axes.texts]
    assert "0.50\n0.30–0.70" in texts and "0.50\n0.50–0.50" in texts


def test_speakers_of_several_corpora_keep_their_corpus(figures):
    speakers_picture({"a": {"x-1": 0.2, "y-1": 0.6}}, 0.25)
    names = [t.get_text() for t in figures[0].axes[0].get_xticklabels(minor=True)]
    assert names == ["x-1", "y-1"]


def test_a_confusion_shows_shares_of_the_row_and_counts(figures):
    confusion_picture(np.array([[2, 0, 1, 1], [0, 3, 0, 1]]), ["x", "y"], ["x", "y", "p", "none"], "one")
    axes = figures[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", "p", "none"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x (4)", "y (4)"]
    texts = [t.get_text() for t in axes.texts]
    assert texts == ["50 %", "2", "25 %", "1", "25 %", "1", "75 %", "3", "25 %", "1"]


def test_bars_have_their_values_intervals_and_the_line_of_chance(figures):
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    panels = {
        "UAR": {"right": cell, "wrong": {"value": None, "low": None, "high": None}},
        "other": {"right": cell},
    }
    drawing.bars_picture(panels, {"UAR": (0.25, "chance")})
    first, second = figures[0].axes
    assert [t.get_text() for t in first.texts] == ["0.50", "–"] and [t.get_text() for t in second.texts] == [
        "0.50"
    ]
    assert "dashed: chance" in first.get_title() and len(first.lines) == 2 and len(second.lines) == 1
