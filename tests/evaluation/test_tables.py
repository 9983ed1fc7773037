"""Tables as text, and the numbers in them, worked by hand."""

import numpy as np
import pandas as pd
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.report.tables import (
    GAPS,
    best,
    differences,
    holm,
    latex,
    line,
    markdown,
    outcome,
    rows_of,
)
from aligncap.utils.statistics import mean

METRICS = ["emotion_uar", "wrong_claim_share"]


def gap(value, low, high, p=0.01, p_holm=None):
    return dict(zip(GAPS, (value, low, high, p, p / 2, p, p_holm, 3, 3)))


def cell(value, low=None, high=None, spread=None):
    return {"value": value, "low": low, "high": high, "spread": spread}


def frame(*rows, metrics=METRICS):
    """Rows: (name, label, note, baseline, cells, gaps)."""
    lines = [
        {"system": name, "label": label, "seeds": "0", "note": note, "baseline": baseline}
        | line(m, cells, gaps)
        for name, label, note, baseline, cells, gaps in rows
        for m in metrics
    ]
    return pd.DataFrame(lines, dtype=object).assign(block="s", title="s (2 clips)")


def table():
    return frame(
        (
            "one",
            "A_1 | 50 %",
            "seed 2 missing",
            False,
            {"emotion_uar": cell(0.5, 0.4, 0.6, 0.02), "wrong_claim_share": cell(0.3)},
            {"emotion_uar": gap(-0.1, -0.2, -0.01, 0.0004, 0.0008)},
        ),
        (
            "two",
            "B & {x}",
            "",
            False,
            {"emotion_uar": cell(0.6, 0.5, 0.7), "wrong_claim_share": cell(0.2996)},
            {},
        ),
        ("probe", "probe", "", True, {"emotion_uar": cell(0.9)}, {}),
    )


def test_markdown_has_bold_best_dashes_and_differences():
    lines = markdown(table(), "Title #1", "B & {x}", {"Claims": ["a < b: holds"]}).splitlines()
    assert lines[4] == "|  | Emotion UAR ↑ | Wrong acoustic claims, share ↓ |"
    assert lines[6] == "| A\\_1 \\| 50 % (seed 2 missing) | 0.500 ± 0.020 [0.400, 0.600] | **0.300** |"
    # equal in print, so both are best; the probe's 0.9 does not compete
    assert lines[7] == "| B & {x} | **0.600** [0.500, 0.700] | **0.300** |"
    assert lines[8] == "| probe | 0.900 | – |"
    assert "| A\\_1 \\| 50 % | −0.100 [−0.200, −0.010], p \\< 0.001, Holm \\< 0.001, 3/3 | – |" in lines
    assert lines[-1] == "- a \\< b: holds"


def test_latex_escapes_what_it_would_read_as_commands():
    text = latex(table(), "t", "Title #1", {"Notes": ["half\nhalf"]})
    assert r"A\_1 | 50 \% (seed 2 missing) & 0.500 $\pm$ 0.020 [0.400, 0.600] & \textbf{0.300} \\" in text
    assert r"B \& \{x\} & \textbf{0.600} [0.500, 0.700] & \textbf{0.300} \\" in text
    assert r"probe & 0.900 & -- \\" in text
    assert r"\caption{Title \#1: s (2 clips)}" in text and r"\label{tab:t-s}" in text
    assert r"Emotion UAR $\uparrow$" in text and r"\begin{tabular}{lrr}" in text
    assert text.rstrip().endswith("% half half")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_nothing_is_best_of_one_or_of_what_has_no_direction():
    cells = {"mean_length": cell(3.0), "meteor": cell(0.1)}
    rows = frame(
        ("a", "a", "", False, cells, {}),
        ("b", "b", "", False, {"mean_length": cell(4.0)}, {}),
        metrics=["mean_length", "meteor"],
    )
    assert best(rows) == set()


def utterances(speakers):
    return [
        Utterance(id=f"u{i}", audio="", root=".", corpus="c", language="en", speaker=s)
        for i, s in enumerate(speakers)
    ]


def test_seeds_are_averaged_and_drawn_together():
    # two speakers of two clips, two seeds: means 0.25 and 0.75
    runs = {
        "a": {0: {"meteor": mean(np.array([0.0, 0, 1, 0]))}, 1: {"meteor": mean(np.array([1.0, 1, 1, 0]))}}
    }
    (row,) = rows_of(runs, {"a": ("A", "")}, "a", utterances("aabb"), ["meteor"], 500)
    assert row["value"] == pytest.approx(0.5) and row["spread"] == pytest.approx(np.sqrt(0.125))
    # both speakers have the same mean over seeds, so a joint draw never moves it
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.5))
    assert row["seeds"] == "0 1" and row["gap"] is None


def test_a_system_without_captions_has_a_row_without_numbers():
    runs = {"a": {0: {"meteor": mean(np.ones(4))}}, "b": {}}
    labels = {"a": ("A", ""), "b": ("B", "not run")}
    _, row = rows_of(runs, labels, "a", utterances("aabb"), ["meteor"], 50)
    assert row["note"] == "not run" and row["value"] is None and row["gap"] is None


def compared(one, two, resamples=2000):
    runs = {
        name: {i: {"x": mean(np.array(v, float))} for i, v in enumerate(x)}
        for name, x in zip("ab", (one, two))
    }
    return differences(runs, "a", "b", utterances("abcd"), ["x"], resamples)["x"]


def test_the_permutation_over_clips_agrees_with_all_exchanges():
    # four clips, differences 1, 1, 1, -1: of 16 sign patterns 10 give a sum of at least 2 in size
    found = compared([[0, 0, 0, 1]], [[1, 1, 1, 0]], 20_000)
    assert found["gap"] == pytest.approx(0.5)
    assert found["p_clips"] == pytest.approx(10 / 16, abs=0.02)
    assert found["p"] == max(found["p_clips"], found["p_speakers"])
    assert (found["seeds_agree"], found["seeds_compared"]) == (1, 1)


def test_equal_systems_do_not_differ():
    found = compared([[0, 1, 0, 1]], [[0, 1, 0, 1]])
    assert (found["gap"], found["p_speakers"], found["p_clips"]) == (0, 1, 1)


def test_seeds_that_disagree_are_counted_and_only_common_seeds_are_compared():
    low, high = [0] * 4, [1] * 4
    found = compared([low, low, high, low], [high, high, low])
    assert found["gap"] == pytest.approx(1 / 3)
    assert (found["seeds_agree"], found["seeds_compared"]) == (2, 3)


def test_holm_corrects_step_by_step():
    # 0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not fall below the one before
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert found == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})


@pytest.mark.parametrize(
    "difference, metric, at_least, wanted",
    [
        (gap(0.1, 0.05, 0.2), "meteor", False, "holds"),
        (gap(0.1, -0.05, 0.2), "meteor", False, "right way, but within chance"),
        (gap(0.1, 0.05, 0.2, p=0.2), "meteor", False, "right way, but within chance"),
        (gap(-0.1, -0.2, -0.05), "meteor", False, "does not hold"),
        (gap(-0.1, -0.2, -0.05), "wrong_claim_share", False, "holds"),
        (gap(0.0, -0.1, 0.1), "meteor", True, "holds"),
        (gap(-0.1, -0.2, 0.1), "meteor", True, "worse, but within chance"),
        (gap(-0.1, -0.2, -0.05), "meteor", True, "does not hold"),
    ],
)
def test_what_became_of_a_claim(difference, metric, at_least, wanted):
    assert outcome(metric, difference, at_least) == wanted
