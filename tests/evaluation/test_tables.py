"""Tables as text, and the numbers in them, worked by hand."""

import numpy as np
import pandas as pd
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.report.tables import (
    GAPS,
    best,
    differences,
    latex,
    line,
    markdown,
    outcome,
    rows_of,
)
from aligncap.utils.statistics import mean

METRICS = ["emotion_uar", "wrong_claim_share"]


def gap(value, low, high, p_holm=0.01, units=24):
    return dict(zip(GAPS, (value, low, high, p_holm, p_holm, units, 3, 3)))


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
            {"emotion_uar": gap(-0.1, -0.2, -0.01, 0.0008)},
        ),
        (
            "two",
            "B & {x}",
            "",
            False,
            {"emotion_uar": cell(0.6, 0.5, 0.7), "wrong_claim_share": cell(0.2996)},
            {"emotion_uar": gap(0.1, -0.1, 0.3, None, 4)},
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
    assert "| A\\_1 \\| 50 % | −0.100 [−0.200, −0.010], p \\< 0.001 (holds), 3/3 | – |" in lines
    assert "| B & {x} | +0.100 [−0.100, 0.300], no claim (4 speakers), 3/3 | – |" in lines
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
    (row,) = rows_of(runs, {"a": ("A", "")}, "a", utterances("aabb"), ["meteor"])
    assert row["value"] == pytest.approx(0.5) and row["spread"] == pytest.approx(np.sqrt(0.125))
    # both speakers have the same mean over seeds, so it is the same without either
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.5))
    assert row["seeds"] == "0 1" and row["gap"] is None


def test_a_system_without_captions_has_a_row_without_numbers():
    runs = {"a": {0: {"meteor": mean(np.ones(4))}}, "b": {}}
    labels = {"a": ("A", ""), "b": ("B", "not run")}
    _, row = rows_of(runs, labels, "a", utterances("aabb"), ["meteor"])
    assert row["note"] == "not run" and row["value"] is None and row["gap"] is None


def compared(one, two, margins=None):
    runs = {
        name: {i: {"meteor": mean(np.array(v, float))} for i, v in enumerate(x)}
        for name, x in zip("ab", (one, two))
    }
    return differences(runs, "a", "b", utterances(map(str, range(len(one[0])))), ["meteor"], margins)[
        "meteor"
    ]


def test_the_exchange_of_speakers_tries_all_of_them():
    # twelve speakers, differences 1 (ten) and -1 (two): 2 · (1 + 12 + 66) of 4096 sums are as large as 8
    found = compared([[0] * 10 + [1] * 2], [[1] * 10 + [0] * 2])
    assert found["gap"] == pytest.approx(8 / 12) and found["p"] == pytest.approx(2 * 79 / 4096)
    assert (found["units"], found["seeds_agree"], found["seeds_compared"]) == (12, 1, 1)


def test_equal_systems_do_not_differ():
    found = compared([[0, 1] * 6], [[0, 1] * 6])
    assert (found["gap"], found["p"]) == (0, 1)


def test_below_twelve_speakers_there_is_no_p():
    found = compared([[0.0] * 11], [[1.0] * 11])
    assert (found["p"], found["units"]) == (None, 11)
    assert "not shown (+1.000 [1.000, 1.000], no claim (11 speakers), 1/1 seeds)" == outcome(
        "meteor", 0.0, found
    )


def test_not_worse_is_said_within_a_stated_margin_only():
    rng = np.random.default_rng(0)
    one = rng.random(24)
    two = one + rng.normal(0, 0.02, 24)
    assert compared([one], [two])["p"] > 0.05  # no difference is shown, which is not equality
    assert compared([one], [two], {"meteor": 0.05})["p"] < 0.001
    assert compared([one], [two - 0.05], {"meteor": 0.05})["p"] > 0.05


def test_seeds_that_disagree_are_counted_and_only_common_seeds_are_compared():
    low, high = [0] * 4, [1] * 4
    found = compared([low, low, high, low], [high, high, low])
    assert found["gap"] == pytest.approx(1 / 3)
    assert (found["seeds_agree"], found["seeds_compared"]) == (2, 3)


@pytest.mark.parametrize(
    "difference, metric, margin, wanted",
    [
        (gap(0.1, 0.05, 0.2), "meteor", 0, "holds"),
        (gap(0.1, 0.05, 0.2, p_holm=0.2), "meteor", 0, "right way, but within chance"),
        (gap(-0.1, -0.2, -0.05), "meteor", 0, "does not hold"),
        (gap(-0.1, -0.2, -0.05), "wrong_claim_share", 0, "holds"),
        (gap(-0.01, -0.02, 0.1), "meteor", 0.05, "holds"),
        (gap(-0.01, -0.1, 0.1, p_holm=0.2), "meteor", 0.05, "right way, but within chance"),
        (gap(-0.1, -0.2, -0.06), "meteor", 0.05, "does not hold"),
        (gap(0.04, 0.03, 0.045), "wrong_claim_share", 0.05, "holds"),
        (gap(0.1, 0.05, 0.2, p_holm=None, units=4), "meteor", 0, "not shown"),
    ],
)
def test_what_became_of_a_claim(difference, metric, margin, wanted):
    assert outcome(metric, margin, difference).startswith(f"{wanted} (")
