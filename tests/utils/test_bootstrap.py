"""Intervals by resampling speakers."""

from __future__ import annotations

import time

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError
from aligncap.utils.statistics import (
    Statistic,
    clusters_of,
    intervals,
    jackknife,
    mean,
    over_seeds,
    paired_differences,
    pooled,
    ratio,
    recall_sums,
    uar,
)


def clips(speakers: list[str | None], corpus: str = "made") -> list[Utterance]:
    return [Utterance(str(i), ".", f"{i}.wav", corpus, speaker=name) for i, name in enumerate(speakers)]


def test_speakers_are_clusters_and_clips_of_unknown_speaker_stand_alone() -> None:
    clusters = clusters_of(clips(["a", "b", None, "a", None]))
    assert clusters.index.tolist() == [0, 1, 2, 0, 3]
    assert (clusters.count, clusters.speakers, clusters.unknown) == (4, 2, 2)
    assert clusters.note.startswith("2 speakers and 2 clips of unknown speaker")


@pytest.mark.parametrize(
    ("speakers", "words"), [([None] * 3, "speakers unknown"), (["a"] * 3, "one speaker only")]
)
def test_without_two_speakers_clips_are_drawn_and_the_note_says_so(
    speakers: list[str | None], words: str
) -> None:
    clusters = clusters_of(clips(speakers))
    assert clusters.count == 3 and words in clusters.note


def test_same_name_in_two_corpora_is_two_speakers() -> None:
    assert clusters_of(clips(["1", "1"]) + clips(["1", "1"], "other")).count == 2


def test_few_speakers_are_called_a_coarse_interval() -> None:
    assert "coarse" in clusters_of(clips(list("abcd"))).note
    assert "coarse" not in clusters_of(clips([str(i) for i in range(12)])).note


def test_interval_equals_a_plain_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=40)
    speakers = [f"s{i % 6}" for i in range(40)]
    found = intervals({"x": mean(values)}, clusters_of(clips(speakers)), resamples=200, seed=9)["x"]
    draws = np.random.default_rng(9).integers(0, 6, (200, 6))
    plain = [np.concatenate([values[np.arange(40) % 6 == s] for s in draw]).mean() for draw in draws]
    assert found["value"] == pytest.approx(values.mean())
    assert [found["low"], found["high"]] == pytest.approx(list(np.quantile(plain, [0.025, 0.975])))


def test_interval_of_a_mean_of_independent_clips_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    found = intervals({"x": mean(values)}, clusters_of(clips([None] * 4000)), resamples=2000, seed=1)["x"]
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.06)


def test_speakers_who_differ_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    by_speaker = intervals({"x": mean(values)}, clusters_of(clips([f"s{i // 50}" for i in range(1000)])))["x"]
    by_clip = intervals({"x": mean(values)}, clusters_of(clips([None] * 1000)))["x"]
    assert by_speaker["high"] - by_speaker["low"] > 4 * (by_clip["high"] - by_clip["low"])


def test_same_seed_same_interval_other_seed_another() -> None:
    values, clusters = np.random.default_rng(0).normal(size=30), clusters_of(clips([None] * 30))
    first, again, other = (intervals({"x": mean(values)}, clusters, seed=s)["x"] for s in (1, 1, 2))
    assert first == again != other


def test_pairing_takes_out_what_speakers_have_in_common() -> None:
    rng = np.random.default_rng(0)
    speakers = [f"s{i // 20}" for i in range(240)]
    ease = np.repeat(rng.normal(size=12), 20)
    a = ease + rng.normal(scale=0.1, size=240)
    b = ease + 0.1 + rng.normal(scale=0.1, size=240)
    clusters = clusters_of(clips(speakers))
    gap = paired_differences({"x": mean(a)}, {"x": mean(b)}, clusters)["x"]
    assert gap["value"] == pytest.approx(b.mean() - a.mean())
    assert gap["low"] > 0.05 and gap["high"] < 0.15 and gap["p"] == pytest.approx(1 / 1000)
    alone = intervals({"x": mean(a)}, clusters)["x"]
    assert alone["high"] - alone["low"] > 5 * (gap["high"] - gap["low"])


def test_a_system_differs_from_itself_by_nothing() -> None:
    values, clusters = mean(np.arange(10.0)), clusters_of(clips([None] * 10))
    assert paired_differences({"x": values}, {"x": values}, clusters)["x"] == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p": 1.0,
    }


def test_a_score_undefined_in_every_resample_has_no_interval() -> None:
    never = Statistic(np.zeros((3, 2)), lambda sums: sums[..., 0] / sums[..., 1])
    with np.errstate(invalid="ignore"):
        found = intervals({"x": never}, clusters_of(clips([None] * 3)))["x"]
    assert found["low"] is None and found["high"] is None


def test_no_resamples_is_a_user_error() -> None:
    with pytest.raises(UserError, match="resamples"):
        intervals({"x": mean(np.ones(2))}, clusters_of(clips([None] * 2)), resamples=0)


def test_a_thousand_resamples_of_ten_thousand_clips_take_seconds() -> None:
    values = {str(k): mean(np.random.default_rng(k).random(10_000)) for k in range(10)}
    start = time.process_time()
    intervals(values, clusters_of(clips([None] * 10_000)))
    assert time.process_time() - start < 5


def test_seeds_are_pooled_by_the_mean_of_their_scores_on_the_same_draw_of_speakers() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 60)
    seeds = [np.where(rng.random(60) < share, truth, rng.integers(0, 3, 60)) for share in (0.3, 0.6, 0.9)]
    clusters = clusters_of(clips([f"s{i % 5}" for i in range(60)]))
    runs = [{"uar": Statistic(recall_sums(truth.tolist(), said.tolist(), [0, 1, 2]), uar)} for said in seeds]
    found = pooled(runs, clusters, resamples=100, seed=4)["uar"]
    alone = [run["uar"].value for run in runs]
    assert found["value"] == pytest.approx(np.mean(alone)) and found["runs"] == 3
    assert found["spread"] == pytest.approx(np.std(alone, ddof=1))
    plain = []
    for draw in np.random.default_rng(4).integers(0, 5, (100, 5)):
        places = np.concatenate([np.flatnonzero(np.arange(60) % 5 == s) for s in draw])
        plain.append(
            np.mean([uar(recall_sums(truth[places], said[places], [0, 1, 2]).sum(0)) for said in seeds])
        )
    assert [found["low"], found["high"]] == pytest.approx(list(np.quantile(plain, [0.025, 0.975])))


def test_seeds_that_err_on_other_speakers_have_a_narrow_interval_together() -> None:
    # each seed fails on one speaker: alone each interval is wide, their mean is the same for every speaker
    clusters = clusters_of(clips(["a", "a", "b", "b"]))
    runs = [{"x": mean(np.array([0.0, 0, 1, 1]))}, {"x": mean(np.array([1.0, 1, 0, 0]))}]
    found = pooled(runs, clusters, resamples=200, seed=0)["x"]
    assert (found["low"], found["value"], found["high"]) == (0.5, 0.5, 0.5)
    alone = intervals(runs[0], clusters)["x"]
    assert (alone["low"], alone["high"]) == (0, 1)


def test_one_seed_is_itself_and_scores_that_a_seed_lacks_are_left_out() -> None:
    one = {"x": mean(np.arange(4.0)), "y": mean(np.ones(4))}
    clusters = clusters_of(clips(list("abcd")))
    found = pooled([one], clusters, resamples=50, seed=0)
    plain = intervals(one, clusters, resamples=50, seed=0)
    assert {k: found["x"][k] for k in ("value", "low", "high")} == plain["x"]
    assert found["x"]["spread"] is None
    assert over_seeds([one, {"x": one["x"]}]).keys() == {"x"}


def test_a_score_that_one_seed_does_not_define_has_no_value() -> None:
    defined, none = ratio(np.ones(4), np.ones(4)), ratio(np.zeros(4), np.zeros(4))
    found = pooled([{"x": defined}, {"x": none}], clusters_of(clips(list("abcd"))), resamples=20, seed=0)["x"]
    assert (found["value"], found["low"], found["high"], found["spread"]) == (None, None, None, None)


def test_uar_leaves_out_labels_without_clips_and_clips_without_label() -> None:
    sums = recall_sums(["a", "a", "b", None], ["a", "b", "b", "a"], ["a", "b", "c"])
    assert sums.shape == (4, 6) and not sums[3].any()
    assert uar(sums.sum(axis=0)) == pytest.approx(0.75)
    assert np.isnan(uar(np.zeros(6)))
    assert uar(sums.sum(axis=0)[None].repeat(2, 0)).shape == (2,)


def test_leaving_out_clusters_gives_the_textbook_error_of_a_mean() -> None:
    values = np.random.default_rng(0).random(30) * 0.2 + 0.4
    without = (values.sum() - values) / 29
    found = jackknife(float(values.mean()), without)
    half = 2.0452296 * values.std(ddof=1) / np.sqrt(30)  # t of 29 degrees of freedom
    assert [found["low"], found["high"]] == pytest.approx([values.mean() - half, values.mean() + half])
    assert jackknife(0.5, np.array([np.nan, 0.4]))["low"] is None
