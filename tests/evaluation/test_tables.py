"""Tables as text, and the numbers in them, worked by hand."""

import csv
import io

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import score
from aligncap.evaluation.report.html import tables as score_cache
from aligncap.evaluation.report.tables import (
    Block,
    Cell,
    Difference,
    Row,
    Table,
    best,
    cells,
    csv_text,
    differences,
    file_statistics,
    holm,
    latex,
    markdown,
    outcome,
    over_seeds,
)
from aligncap.utils.io import write_jsonl
from aligncap.utils.statistics import Statistic, mean


def gap(value, low, high, p=0.01, **more):
    return Difference(value, low, high, p, p / 2, (3, 3), **more)


def table(**more):
    rows = [
        Row(
            "one",
            "A_1 | 50 %",
            {
                "emotion_uar": Cell(0.5, 0.4, 0.6, 0.02, gap(-0.1, -0.2, -0.01, 0.0004, p_holm=0.0008)),
                "wrong_claim_share": Cell(0.3),
            },
            ("0", "1"),
            "seed 2 missing",
        ),
        Row(
            "two", "B & {x}", {"emotion_uar": Cell(0.6, 0.5, 0.7), "wrong_claim_share": Cell(0.2996)}, ("0",)
        ),
        Row("probe", "probe", {"emotion_uar": Cell(0.9)}, competes=False),
    ]
    return Table(
        "t",
        "Title #1",
        "B & {x}",
        [Block("s", "s (2 clips)", ["emotion_uar", "wrong_claim_share"], rows)],
        **more,
    )


def test_markdown_has_bold_best_dashes_and_differences():
    lines = markdown(table(claims=["a < b: holds"])).splitlines()
    assert lines[4] == "|  | Emotion UAR ↑ | Wrong acoustic claims, share ↓ |"
    assert lines[6] == "| A\\_1 \\| 50 % (seed 2 missing) | 0.500 ± 0.020 [0.400, 0.600] | **0.300** |"
    # equal in print, so both are best; the probe's 0.9 does not compete
    assert lines[7] == "| B & {x} | **0.600** [0.500, 0.700] | **0.300** |"
    assert lines[8] == "| probe | 0.900 | – |"
    assert "| A\\_1 \\| 50 % | −0.100 [−0.200, −0.010], p \\< 0.001, Holm \\< 0.001, 3/3 | – |" in lines
    assert lines[-1] == "- a \\< b: holds"


def test_latex_escapes_what_it_would_read_as_commands():
    text = latex(table(notes=["half\nhalf"]))
    assert r"A\_1 | 50 \% (seed 2 missing) & 0.500 $\pm$ 0.020 [0.400, 0.600] & \textbf{0.300} \\" in text
    assert r"B \& \{x\} & \textbf{0.600} [0.500, 0.700] & \textbf{0.300} \\" in text
    assert r"probe & 0.900 & -- \\" in text
    assert r"\caption{Title \#1: s (2 clips)}" in text and r"\label{tab:t-s}" in text
    assert r"Emotion UAR $\uparrow$" in text
    assert text.rstrip().endswith("% half half")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_csv_has_every_number_unrounded():
    rows = list(csv.DictReader(io.StringIO(csv_text(table()))))
    assert len(rows) == 6
    assert rows[0]["difference"] == "-0.1" and rows[0]["p_speakers"] == "0.0004" and rows[0]["seeds"] == "0 1"
    assert rows[3]["value"] == "0.2996" and rows[3]["low"] == ""
    assert rows[5]["system"] == "probe" and rows[5]["value"] == ""


def test_nothing_is_best_of_one_or_of_what_has_no_direction():
    row = Row("a", "a", {"mean_length": Cell(3), "meteor": Cell(0.1)})
    other = Row("b", "b", {"mean_length": Cell(4)})
    assert best(Block("s", "s", ["mean_length", "meteor"], [row, other])) == set()


def utterances(speakers):
    return [
        Utterance(id=f"u{i}", audio="", root=".", corpus="c", language="en", speaker=s)
        for i, s in enumerate(speakers)
    ]


def test_seeds_are_averaged_and_drawn_together():
    # two speakers of two clips, two seeds: means 0.25 and 0.75
    runs = [{"x": mean(np.array([0.0, 0, 1, 0]))}, {"x": mean(np.array([1.0, 1, 1, 0]))}]
    cell = cells(runs, utterances("aabb"), ["x"], resamples=500)["x"]
    assert cell.value == pytest.approx(0.5) and cell.spread == pytest.approx(np.sqrt(0.125))
    # both speakers have the same mean over seeds, so a joint draw never moves it
    assert (cell.low, cell.high) == pytest.approx((0.5, 0.5))
    part = cells(runs, utterances("aabb"), ["x"], keep=[True, True, True, False])["x"]
    assert part.value == pytest.approx((1 / 3 + 1) / 2)


def test_a_metric_that_one_seed_lacks_is_left_out():
    assert over_seeds([{"x": mean(np.ones(2)), "y": mean(np.ones(2))}, {"x": mean(np.ones(2))}]).keys() == {
        "x"
    }


def test_the_permutation_over_clips_agrees_with_all_exchanges():
    # four clips, differences 1, 1, 1, -1: of 16 sign patterns 10 give a sum of at least 2 in size
    one, two = mean(np.array([0.0, 0, 0, 1])), mean(np.array([1.0, 1, 1, 0]))
    found = differences([{"x": one}], [{"x": two}], utterances("abcd"), ["x"], resamples=20_000)["x"]
    assert found.value == pytest.approx(0.5)
    assert found.p_clips == pytest.approx(10 / 16, abs=0.02)
    assert found.p == max(found.p_clips, found.p_speakers) and found.seeds == (1, 1)


def test_equal_systems_do_not_differ():
    same = [{"x": mean(np.array([0.0, 1, 0, 1]))}]
    found = differences(same, same, utterances("abcd"), ["x"])["x"]
    assert (found.value, found.p_speakers, found.p_clips) == (0, 1, 1)


def test_seeds_that_disagree_are_counted():
    low, high = {"x": mean(np.zeros(4))}, {"x": mean(np.ones(4))}
    found = differences([low, low, high], [high, high, low], utterances("abcd"), ["x"])["x"]
    assert found.value == pytest.approx(1 / 3) and found.seeds == (2, 3)


def test_holm_corrects_step_by_step():
    found = holm({"a": gap(1, 0, 1, 0.04), "b": gap(1, 0, 1, 0.01), "c": gap(1, 0, 1, 0.03)})
    # 0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not fall below the one before
    assert {name: g.p_holm for name, g in found.items()} == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})


@pytest.mark.parametrize(
    "difference, options, said",
    [
        (gap(0.1, 0.05, 0.2), {}, "holds"),
        (gap(0.1, -0.05, 0.2), {}, "right way, but within chance"),
        (gap(0.1, 0.05, 0.2, p=0.2), {}, "right way, but within chance"),
        (gap(-0.1, -0.2, -0.05), {}, "does not hold"),
        (gap(-0.1, -0.2, -0.05), {"less_is_better": True}, "holds"),
        (gap(0.0, -0.1, 0.1), {"at_least": True}, "holds"),
        (gap(-0.1, -0.2, 0.1), {"at_least": True}, "worse, but within chance"),
        (gap(-0.1, -0.2, -0.05), {"at_least": True}, "does not hold"),
    ],
)
def test_what_became_of_a_claim(difference, options, said):
    assert outcome(difference, **{"less_is_better": False, **options}) == said


def spoken():
    labels = ["angry", "sad", "angry", "calm"]
    return [
        Utterance(
            id=f"u{i}",
            audio="",
            root=".",
            corpus="c",
            language="en",
            speaker=f"s{i % 2}",
            emotion=label,
            gender="female",
            transcript="dogs are sitting by the door",
            captions=[f"She sounds {label}.", f"A {label} voice that is low."],
            cues={"f0_mean": 200.0 + i, "energy_mean": -20.0 - i, "rate": 3.0 + i},
        )
        for i, label in enumerate(labels)
    ]


def test_kept_scores_are_those_counted_afresh_and_are_not_counted_again(tmp_path, monkeypatch):
    monkeypatch.setattr("aligncap.evaluation.evaluate.find_wordnet", lambda: None)
    references = spoken()
    captions = ["She sounds angry.", "She is calm and slow.", "A low voice.", "He sounds angry."]
    rows = [{"id": u.id, "caption": c} for u, c in zip(references, captions)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    fresh = score(references, captions, similarity="none").statistics
    first = file_statistics(tmp_path / "c.jsonl", references, "hash", cache_folder=tmp_path / "scores")
    monkeypatch.setattr(score_cache, "score", None)
    kept = file_statistics(tmp_path / "c.jsonl", references, "hash", cache_folder=tmp_path / "scores")
    assert first.keys() == kept.keys() == fresh.keys()
    rng = np.random.default_rng(1)
    draws = rng.multinomial(4, [0.25] * 4, 50).astype(float)
    with np.errstate(all="ignore"):
        for name, statistic in fresh.items():
            wanted, got = (s.score(draws @ s.sums) for s in (statistic, kept[name]))
            assert np.allclose(got, wanted, equal_nan=True), name
    for other in (("other", {}), ("hash", {"calm": "sad"})):
        with pytest.raises(TypeError):  # counted anew, which is not to be had here
            file_statistics(
                tmp_path / "c.jsonl",
                references,
                other[0],
                label_map=other[1],
                cache_folder=tmp_path / "scores",
            )


def test_a_score_of_unknown_form_is_not_kept_wrongly(tmp_path, monkeypatch):
    odd = {"x": Statistic(np.ones((4, 3)), lambda sums: sums[..., 0] * sums[..., 2])}
    scored = type("Scored", (), {"statistics": odd})
    monkeypatch.setattr(score_cache, "score", lambda *_, **__: scored)
    references = spoken()
    write_jsonl(tmp_path / "c.jsonl", [{"id": u.id, "caption": "x"} for u in references])
    found = file_statistics(tmp_path / "c.jsonl", references, "hash", cache_folder=tmp_path / "scores")
    assert found is odd and not (tmp_path / "scores").exists()
