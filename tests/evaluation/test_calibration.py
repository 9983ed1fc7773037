"""Expected calibration error and accuracy by coverage, by hand and in the report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics.calibration import calibration, coverage_curve
from aligncap.evaluation.report.html import write_report
from aligncap.evaluation.scoring import System, score_rows
from aligncap.utils.errors import UserError
from aligncap.utils.statistics import calibration_error

LABELS = ("angry", "sad")


def clips(number: int = 40) -> list[Utterance]:
    """Of four speakers, the labels in turn."""
    return [
        Utterance(
            f"c{i}",
            ".",
            f"c{i}.wav",
            "made",
            speaker=f"s{i % 4}",
            emotion=LABELS[i // 4 % 2],
            captions=["He speaks."],
        )
        for i in range(number)
    ]


def rows(confidence: float, wrong: int, number: int = 40) -> list[dict]:
    """Of every ten clips the first `wrong` name the other emotion."""
    found = []
    for i, u in enumerate(clips(number)):
        said = LABELS[(LABELS.index(str(u.emotion)) + (i % 10 < wrong)) % 2]
        found.append({"id": u.id, "caption": f"He sounds {said}.", "emotion": said, "confidence": confidence})
    return found


def scored(*runs: list[dict]) -> list:
    return [score_rows(run, clips(len(run)), wordnet="none", similarity="none") for run in runs]


def test_the_error_by_hand():
    # one bin each: |.2 - 0| and |.8 - 1|
    assert calibration_error(np.array([0.2, 0.8]), np.array([0, 1]), bins=2) == pytest.approx(0.2)
    # two bins of two: |.25 - .5| and |.8 - .5|
    error = calibration_error(np.array([0.2, 0.9, 0.3, 0.7]), np.array([1, 1, 0, 0]), bins=2)
    assert error == pytest.approx((0.25 + 0.3) / 2)
    # equal ones share a bin, in any order
    for right in ([1, 1, 1, 0], [0, 1, 1, 1]):
        assert calibration_error(np.full(4, 0.75), np.array(right), bins=4) == 0
    assert np.isnan(calibration_error(np.array([]), np.array([])))


def test_bins_hold_equal_numbers_of_clips():
    """Right half of the time at every confidence: bins that mix them would hide the gaps."""
    confidence = np.repeat(np.arange(0.05, 1, 0.1), 10)
    right = np.tile([0, 1], 50)
    gaps = np.abs(np.arange(0.05, 1, 0.1) - 0.5)
    assert calibration_error(confidence, right) == pytest.approx(gaps.mean())


def test_chance_is_what_is_left_of_a_calibrated_caption():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert calibration_error(confidence, right) < 0.01
    assert calibration_error(np.minimum(confidence + 0.1, 2), right) == pytest.approx(0.1, abs=0.01)


def test_coverage_and_accuracy_by_hand():
    curve = coverage_curve(np.array([0.5, 0.9, 0.5, 0.7]), np.array([0, 1, 1, 0]), clips=8)
    assert [point["least"] for point in curve] == [0.5, 0.7, 0.9]
    assert [point["coverage"] for point in curve] == [4 / 8, 2 / 8, 1 / 8]
    assert [point["accuracy"] for point in curve] == [0.5, 0.5, 1.0]
    assert coverage_curve(np.array([]), np.array([]), 3) == []
    long = coverage_curve(np.arange(1, 1001) / 1000, np.ones(1000), 1000)
    assert len(long) == 200 and (long[0]["coverage"], long[-1]["coverage"]) == (1.0, 0.001)


def test_a_planted_gap_is_found_with_its_interval():
    found = calibration(scored(rows(0.9, wrong=4)))
    assert found is not None
    assert found["ece"]["value"] == pytest.approx(0.3) and found["accuracy"] == pytest.approx(0.6)
    assert found["ece"]["low"] <= 0.3 <= found["ece"]["high"]
    assert found["clips"] == 40 and found["coverage"] == 1
    two = calibration(scored(rows(0.9, wrong=4), rows(0.9, wrong=2)))  # two seeds: .6 and .8 right
    assert two is not None and two["ece"]["value"] == pytest.approx(0.2) and two["clips"] == 80


def test_an_open_caption_counts_by_its_guess_and_one_without_emotion_is_not_covered():
    told = rows(0.9, wrong=4)
    for row in told[:10]:
        row |= {"caption": "The speaker's emotion is unsure.", "unsure": True, "guess": row["caption"]}
    told[39] |= {"emotion": None, "confidence": None}
    found = calibration(scored(told))
    assert found is not None and found["clips"] == 39 and found["coverage"] == pytest.approx(39 / 40)
    assert found["accuracy"] == pytest.approx(23 / 39)


def test_renamed_emotions_count_as_what_they_are_renamed_to():
    told = [row | {"emotion": "calm", "caption": "He sounds calm."} for row in rows(0.5, 0)]
    run = score_rows(told, clips(), wordnet="none", similarity="none", label_map={"calm": "sad"})
    found = calibration([run])
    assert found is not None and found["accuracy"] == 0.5 and found["ece"]["value"] == 0


@pytest.mark.parametrize("value", [1.2, -0.1, "0.5", True, float("nan")])
def test_a_confidence_that_is_none_is_an_error(value):
    told = rows(0.9, 0)
    told[3]["confidence"] = value
    with pytest.raises(UserError, match="id 'c3': confidence .* from 0 to 1"):
        calibration(scored(told))


def test_the_report_tells_it_where_captions_do(tmp_path):
    plain = [{"id": row["id"], "caption": row["caption"]} for row in rows(0.9, 4)]
    for name, run in (("plain", plain), ("sure", rows(0.9, 4))):
        write_report(tmp_path / name, [System("model", scored(run))], clips())
    read = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "sure")}
    assert read["sure"].pop("calibration")["model"]["ece"]["value"] == pytest.approx(0.3)
    assert read["sure"].keys() == read["plain"].keys()
    pages = {name: (tmp_path / name / "report.html").read_text() for name in read}
    assert "ECE" not in pages["plain"] and not (tmp_path / "plain/coverage.png").exists()
    assert "0.300" in pages["sure"] and 'src="coverage.png"' in pages["sure"] and "10 bins" in pages["sure"]
    assert (tmp_path / "sure/coverage.png").read_bytes().startswith(b"\x89PNG")
