from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, t
from sklearn.metrics import cohen_kappa_score

from aligncap.preferences import agreement
from aligncap.preferences.agreement import (
    AgreeConfig,
    Scored,
    agreement_tables,
    cell,
    clusters_of_clips,
    order_statistics,
    pair_counts,
)
from aligncap.utils.errors import UserError
from aligncap.utils.statistics import intervals, left_out, overall_tau, tau_b, weighted_kappa


def agree(a: Any, b: Any) -> dict[str, Any]:
    return agreement.agree(a, b)


def agree_files(a: Path, b: Path, **options: Any) -> dict[str, Any]:
    words = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return agreement.agree_files(AgreeConfig(a=str(a), b=str(b), **words))


def self_consistency(compared: Any) -> dict[str, Any]:
    return agreement.self_consistency(compared)


def rows(
    clips: list[list[float]], judge: str = "one", captions: list[list[str]] | None = None
) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{i:03d}",
            "audio": "x.wav",
            "candidate": k,
            "caption": captions[i][k] if captions else f"caption {k}" + " word" * k,
            "kind": "candidate",
            "verdict": {
                "scores": {"emotion": score},
                "overall": score,
                "reason": "",
                "judge": judge,
                "version": "1",
                "prompt_hash": "",
            },
        }
        for i, scores in enumerate(clips)
        for k, score in enumerate(scores)
    ]


def noisy(clips: int = 60, noise: float = 2.0, seed: int = 0) -> tuple[list[list[float]], list[list[float]]]:
    """Scores of a judge and of a noisier one; lengths (by candidate number) say nothing of either."""
    rng = Random(seed)
    a = [[rng.uniform(0, 10) for _ in range(5)] for _ in range(clips)]
    return a, [[min(10.0, max(0.0, x + rng.gauss(0, noise))) for x in clip] for clip in a]


def test_one_clip_by_hand() -> None:
    # pairs: (0,1) tied by A; (0,2) alike; (0,3) alike; (1,2) alike; (1,3) tied by B; (2,3) the other way
    result = agree(rows([[1, 1, 5, 7]]), rows([[2, 3, 9, 3]], "two"))
    s = result["statistics"]
    assert result["ties"] == {
        "pairs": 6,
        "tied_by_a": pytest.approx(1 / 6),
        "tied_by_b": pytest.approx(1 / 6),
        "tied_by_both": 0,
    }
    assert s["pairwise"]["value"] == pytest.approx(3 / 4)
    assert s["pairwise_ties_half"]["value"] == pytest.approx((3 + 0.5) / 5)
    assert s["tau_within"]["value"] == pytest.approx((3 - 1) / np.sqrt(5 * 5))
    assert s["tau_overall"]["value"] == pytest.approx(2 / 5)


def test_tau_within_clips_is_a_mean_and_leaves_out_clips_without_one() -> None:
    # tau 1, tau -1/3 (one pair alike, two the other way), and a clip that A scores all alike
    result = agree(rows([[1, 2, 3], [1, 2, 3], [4, 4, 4]]), rows([[1, 2, 3], [3, 1, 2], [1, 2, 3]], "two"))
    assert result["statistics"]["tau_within"]["value"] == pytest.approx((1 - 1 / 3) / 2)
    assert result["clips_without_tau"] == 1


def test_weighted_kappa_by_hand() -> None:
    # squared differences 0, 1, 1, 4: mean 1.5; of every score of A with every one of B: mean 2
    a, b = [1, 2, 3, 4], [1, 3, 2, 2]
    expected = np.mean([(x - y) ** 2 for x in a for y in b])
    result = agree(rows([a]), rows([b], "two"))
    assert expected == 2.0
    assert result["statistics"]["kappa"]["value"] == pytest.approx(1 - 1.5 / 2.0)
    assert result["kappa_by_criterion"]["emotion"]["value"] == pytest.approx(0.25)


def test_scores_are_rounded_half_up_for_kappa() -> None:
    result = agree(rows([[0.5, 1.4, 2.5]]), rows([[1, 1, 3]], "two"))
    assert result["statistics"]["kappa"]["value"] == 1


def test_statistics_without_a_clip_are_those_of_the_other_captions() -> None:
    rng = np.random.default_rng(0)
    clip = np.repeat(np.arange(6), [3, 1, 5, 2, 4, 6])
    scored = Scored(*(rng.integers(0, 6, len(clip)).astype(float) for _ in range(2)), clip)
    kappa = weighted_kappa(scored.a, scored.b)
    by_clip = order_statistics(scored, pair_counts(scored))["tau_within"]
    without, _ = left_out(kappa, clusters_of_clips(clip))
    taus, _ = left_out(by_clip, clusters_of_clips(np.arange(6)))
    alone = [tau_b(scored.a[clip == c], scored.b[clip == c]) for c in range(6)]
    overall = []
    for c in range(6):
        a, b = scored.a[clip != c], scored.b[clip != c]
        overall.append(kendalltau(a, b).statistic)
        assert without[c] == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"), abs=1e-9)
        assert taus[c] == pytest.approx(np.nanmean(np.delete(alone, c)), abs=1e-9)
    assert kappa.value == pytest.approx(cohen_kappa_score(scored.a, scored.b, weights="quadratic"), abs=1e-9)
    tau = overall_tau(scored.a, scored.b, clusters_of_clips(clip), "")
    error = np.sqrt(5 * np.var(overall))
    freedom = 21**2 / (np.bincount(clip) ** 2).sum() - 1
    assert tau["high"] - tau["value"] == pytest.approx(t.ppf(0.975, freedom) * error)


def test_equal_judges_agree_wholly_and_opposite_ones_not_at_all() -> None:
    a, _ = noisy()
    same = agree(rows(a), rows(a, "two"))["statistics"]
    for name in ("tau_within", "tau_overall", "pairwise", "pairwise_ties_half", "kappa"):
        assert [same[name][k] for k in ("value", "low", "high")] == pytest.approx([1, 1, 1], abs=1e-9), name
    other = agree(rows(a), rows([[10 - x for x in clip] for clip in a], "two"))["statistics"]
    assert other["tau_within"]["value"] == pytest.approx(-1, abs=1e-9) and other["pairwise"]["value"] == 0


def test_intervals_hold_the_value_and_narrow_with_clips() -> None:
    widths = []
    for clips in (30, 480):
        a, b = noisy(clips)
        for name, found in agree(rows(a), rows(b, "two"))["statistics"].items():
            assert found["low"] < found["value"] < found["high"], name
            if name == "pairwise":
                widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2.5


def test_the_interval_holds_the_true_agreement_most_of_the_time() -> None:
    a, b = (np.ravel(scores) for scores in noisy(4000, seed=99))
    scored = Scored(a, b, np.repeat(np.arange(4000), 5))
    truth = order_statistics(scored, pair_counts(scored))["pairwise"].value
    inside = 0
    for seed in range(40):
        a, b = noisy(50, seed=seed)
        scored = Scored(np.ravel(a), np.ravel(b), np.repeat(np.arange(50), 5))
        statistics = order_statistics(scored, pair_counts(scored))
        clips = clusters_of_clips(np.arange(50))
        found = intervals(statistics, clips)["pairwise"]
        inside += found["low"] <= truth <= found["high"]
    assert inside >= 33


def test_a_constant_judge_has_no_rank_agreement_and_that_is_said() -> None:
    a, b = noisy()
    result = agree(rows([[5.0] * 5 for _ in a], "stone"), rows(b, "two"))
    for name in ("tau_within", "tau_overall", "pairwise"):
        found = result["statistics"][name]
        assert found["value"] is None and found["note"] == "undefined: A (stone) gives every caption 5"
    assert result["statistics"]["kappa"]["value"] == pytest.approx(0)
    assert "A gives one score only" in result["statistics"]["kappa"]["note"]
    assert any("orders nothing" in line for line in result["warnings"])
    both = agree(rows([[5.0, 5.0]]), rows([[5.0, 5.0]], "two"))
    assert both["statistics"]["kappa"]["note"] == "undefined: both give one and the same score"
    json.dumps([result, both], allow_nan=False)
    assert agreement_tables(both)


def test_clips_of_one_caption_give_no_rank_agreement() -> None:
    result = agree(rows([[1.0], [4.0], [9.0]]), rows([[2.0], [3.0], [9.0]], "two"))
    assert result["statistics"]["pairwise"]["value"] is None
    assert "no two captions of a clip" in result["statistics"]["pairwise"]["note"]
    assert result["statistics"]["tau_overall"]["value"] == 1
    json.dumps(result, allow_nan=False)


def test_length_alone_is_held_against_the_judge_in_its_better_direction() -> None:
    shorter = [[9.0, 7.0, 5.0, 3.0, 1.0] for _ in range(40)]  # B likes short captions
    result = agree(rows(noisy(40)[0]), rows(shorter, "two"))
    assert result["length"]["better"] == "shorter"
    assert result["length"]["statistics"]["tau_within"]["value"] == pytest.approx(1, abs=1e-9)
    assert result["gain"]["pairwise_ties_half"]["high"] < 0
    assert any("does worse than length alone" in line for line in result["warnings"])


def test_a_judge_that_only_counts_words_is_not_clearly_better() -> None:
    _, b = noisy()
    by_length = [[1.0, 2.0, 3.0, 4.0, 5.0] for _ in b]
    result = agree(rows(by_length), rows(b, "two"))
    assert any("than length alone" in line for line in result["warnings"])
    assert abs(result["statistics"]["tau_within"]["value"]) == pytest.approx(
        abs(result["length"]["statistics"]["tau_within"]["value"])
    )


def test_a_good_judge_of_enough_clips_is_not_warned_of() -> None:
    a, b = noisy()
    result = agree(rows(a), rows(b, "two"))
    assert result["gain"]["pairwise_ties_half"]["low"] > 0 and not result["warnings"]


def test_captions_are_matched_by_clip_number_and_text_in_any_order() -> None:
    a, b = noisy(30)
    rows_a, rows_b = rows(a), rows(b, "two")
    whole = agree(rows_a, rows_b)
    Random(1).shuffle(rows_b)
    assert agree(rows_a, rows_b) == whole
    rows_b[0] = {**rows_b[0], "caption": "reworded"}
    changed = agree(rows_a, rows_b)["matched"]
    assert changed == {"captions": 149, "clips": 30, "only_a": 1, "only_b": 1}
    with pytest.raises(UserError, match="no caption in common"):
        agree(rows([[1, 2]]), rows([[1, 2]], captions=[["x", "y"]]))


def swapped(decisions: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"id": f"c{i}", "a": "x", "b": "y", "winner_ab": ab, "winner_ba": ba}
        for i, (ab, ba) in enumerate(decisions)
    ]


def test_self_consistency_by_hand() -> None:
    # 7 decisions are no ties; the first shown wins one of the first pair's, both of the second's, one of the
    # fourth's and the fifth's one
    decisions = [("a", "a"), ("a", "b"), ("tie", "tie"), ("b", "b"), ("a", "tie")]
    found = self_consistency(swapped(decisions))
    assert found["consistent"]["value"] == pytest.approx(3 / 5)
    assert found["first_preferred"]["value"] == pytest.approx(5 / 7)
    assert found["ties"] == pytest.approx(3 / 10)
    assert found["pairs"] == 5


def test_a_judge_that_takes_the_first_is_found_out() -> None:
    found = self_consistency(swapped([("a", "b")] * 30))
    assert found["consistent"]["value"] == 0 and found["first_preferred"]["value"] == 1
    assert len(found["warnings"]) == 2
    last = self_consistency(swapped([("b", "a")] * 30))
    assert any("second (100%)" in line for line in last["warnings"])
    steady = self_consistency(swapped([("a", "a"), ("b", "b")] * 15))
    assert steady["consistent"]["value"] == 1 and not steady["warnings"]
    ties = self_consistency(swapped([("tie", "tie")] * 3))
    assert ties["first_preferred"]["value"] is None and "tie" in ties["first_preferred"]["note"]


def test_broken_pairwise_rows_are_named() -> None:
    with pytest.raises(UserError, match="pair 2: winner_ba must be a, b, tie, found 'first'"):
        self_consistency(swapped([("a", "a"), ("a", "first")]))
    with pytest.raises(UserError, match="no pair was judged"):
        self_consistency([])


def test_files_are_compared_and_the_report_is_written(tmp_path: Path) -> None:
    a, b = noisy(20)
    for name, content in (
        ("a", rows(a)),
        ("b", rows(b, "human:eva")),
        ("w", swapped([("a", "a"), ("b", "a")])),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in content))
    paths = [tmp_path / f"{name}.jsonl" for name in "abw"]
    result = agree_files(paths[0], paths[1], pairwise=paths[2], out=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == result
    lines = [item for item in agreement_tables(result) if isinstance(item, str)]
    assert any("with captions swapped (2 pairs): same winner 0.500" in line for line in lines)
    assert len(result["files"]) == 3
    paths[2].write_text('{"id": "c0", "winner_ab": "a", "winner_ba": "a", "judge": "openai:other"}')
    with pytest.raises(UserError, match="compared by openai:other"):
        agree_files(paths[0], paths[1], pairwise=paths[2])
    paths[2].write_text('{"id": "c0", "winner_ab": "x", "winner_ba": "a"}')
    with pytest.raises(UserError, match=r"w\.jsonl: pair 1: winner_ab"):
        agree_files(paths[0], paths[1], pairwise=paths[2])


def test_names_of_judges_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = agree(rows([[1, 2]]), rows([[1, 3]], "human:x"))
    monkeypatch.setattr(agreement, "agree_files", lambda config: result)
    agreement.run_agree(AgreeConfig(a="a", b="b"))
    assert "human:x" in capsys.readouterr().out  # ":x:" would be an emoji


def test_a_cell_shows_value_interval_and_note() -> None:
    assert cell({"value": 0.5, "low": 0.25, "high": 0.75, "note": ""}) == "0.500 [0.250, 0.750]"
    assert cell({"value": None, "low": None, "high": None, "note": "undefined: why"}) == "undefined: why"
    assert cell(None) == ""
