"""Intervals and tests over speakers: worked by hand, and their level and coverage simulated.

ALIGNCAP_SIMULATIONS=10000 python -m pytest tests/utils/test_statistics.py -k simulated -s
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import ttest_1samp

from aligncap.data.manifest import Utterance
from aligncap.utils.statistics import (
    FEWEST,
    Clusters,
    Floats,
    Ints,
    Statistic,
    bootstrap,
    chance_p,
    clusters_of,
    correct,
    difference,
    exchanged,
    holm,
    intervals,
    jackknife,
    left_out,
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


def speakers(number: int, each: int = 1) -> Clusters:
    return clusters_of(clips([f"s{i // each}" for i in range(number * each)]))


def test_speakers_are_clusters_and_clips_of_unknown_speaker_stand_alone() -> None:
    clusters = clusters_of(clips(["a", "b", None, "a", None]))
    assert clusters.index.tolist() == [0, 1, 2, 0, 3]
    assert (clusters.count, clusters.speakers, clusters.unknown) == (4, 2, 2)
    assert clusters.note.startswith("2 speakers and 2 clips of unknown speaker; fewer than 12: no claim")
    assert speakers(12).note == "12 speakers"


@pytest.mark.parametrize(
    ("names", "words"), [([None] * 30, "speakers unknown"), (["a"] * 30, "one speaker only")]
)
def test_without_two_speakers_clips_are_the_units_and_nothing_is_claimed(
    names: list[str | None], words: str
) -> None:
    clusters = clusters_of(clips(names))
    assert clusters.count == 30 and words in clusters.note
    values = np.random.default_rng(0).random(30)
    gap = paired_differences({"x": mean(values)}, {"x": mean(values + 1)}, clusters)["x"]
    assert gap["low"] == pytest.approx(1) and gap["p"] is None


def test_same_name_in_two_corpora_is_two_speakers() -> None:
    assert clusters_of(clips(["1", "1"]) + clips(["1", "1"], "other")).count == 2


def test_the_interval_of_a_mean_of_equal_speakers_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(size=(20, 5)).ravel()
    found = intervals({"x": mean(values)}, speakers(20, 5))["x"]
    low, high = ttest_1samp(values.reshape(20, 5).mean(axis=1), 0).confidence_interval(0.95)
    assert [found["low"], found["high"]] == pytest.approx([low, high])
    assert found["value"] == pytest.approx(values.mean())


def test_speakers_who_differ_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    by_speaker = intervals({"x": mean(values)}, speakers(20, 50))["x"]
    by_clip = intervals({"x": mean(values)}, clusters_of(clips([None] * 1000)))["x"]
    assert by_speaker["high"] - by_speaker["low"] > 4 * (by_clip["high"] - by_clip["low"])


def test_speakers_of_few_clips_say_little_about_the_error() -> None:
    without, value = np.array([0.1, 0.0, -0.1]), 0.0
    even = jackknife(value, without, np.ones(3))["high"]
    assert jackknife(value, without, np.array([100.0, 10, 10]))["high"] > 2 * even


def test_the_interval_of_a_share_stays_within_its_range() -> None:
    values = np.array([1.0] * 19 + [0.0])
    share = intervals({"x": mean(values)}, speakers(20))["x"]
    assert share["value"] == 0.95 and 0.6 < share["low"] < 0.95 < share["high"] < 1
    amount = intervals({"x": mean(10 * (1 - values))}, speakers(20))["x"]
    assert 0 < amount["low"] < 0.5 < amount["high"]
    certain = intervals({"x": mean(np.ones(20))}, speakers(20))["x"]
    assert (certain["low"], certain["high"]) == (1, 1)


def test_a_score_that_rests_on_one_speaker_has_no_interval() -> None:
    found = intervals({"x": ratio(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]))}, speakers(3))["x"]
    assert found == {"value": 0.5, "low": None, "high": None}
    nothing = intervals({"x": ratio(np.zeros(3), np.zeros(3))}, speakers(3))["x"]
    assert nothing == {"value": None, "low": None, "high": None}


def test_pairing_takes_out_what_speakers_have_in_common() -> None:
    rng = np.random.default_rng(0)
    ease = np.repeat(rng.normal(size=12), 20)
    a = ease + rng.normal(scale=0.1, size=240)
    b = ease + 0.1 + rng.normal(scale=0.1, size=240)
    gap = paired_differences({"x": mean(a)}, {"x": mean(b)}, speakers(12, 20))["x"]
    assert gap["value"] == pytest.approx(b.mean() - a.mean())
    assert gap["low"] > 0.05 and gap["high"] < 0.15 and gap["p"] < 0.01
    alone = intervals({"x": mean(a)}, speakers(12, 20))["x"]
    assert alone["high"] - alone["low"] > 5 * (gap["high"] - gap["low"])


def spoken(rng: np.random.Generator, shares: tuple[float, ...], number: int, each: int) -> list[Statistic]:
    """UAR of systems that name so large a share of clips rightly; three labels."""
    truth = rng.integers(0, 3, number * each)
    said = [np.where(rng.random(len(truth)) < share, truth, (truth + 1) % 3) for share in shares]
    return [Statistic(recall_sums(truth.tolist(), one.tolist(), [0, 1, 2]), uar, 1.0) for one in said]


@pytest.mark.parametrize("number", [12, 24])
def test_p_is_the_share_of_exchanges_of_speakers_with_as_large_a_difference(number: int) -> None:
    a, b = spoken(np.random.default_rng(2), (0.5, 0.65), number, 10)
    found = paired_differences({"x": a}, {"x": b}, speakers(number, 10))["x"]
    one, two = (s.sums.reshape(number, 10, 6).sum(axis=1) for s in (a, b))
    rng = np.random.default_rng(7)
    every = product((0, 1), repeat=number) if number == 12 else rng.integers(0, 2, (20_000, number))
    large = []
    for swap in every:
        x, y = (np.where(np.array(swap)[:, None], p, q).sum(axis=0) for p, q in ((two, one), (one, two)))
        large.append(abs(uar(y) - uar(x)) >= abs(found["value"]) - 1e-12)
    assert found["p"] == pytest.approx(np.mean(large), abs=1e-12 if number == 12 else 0.005)


def test_systems_of_other_numbers_of_seeds_have_the_p_of_their_interval() -> None:
    a, b, c = spoken(np.random.default_rng(0), (0.5, 0.6, 0.7), 12, 10)
    gap = paired_differences(over_seeds([{"x": a}]), over_seeds([{"x": b}, {"x": c}]), speakers(12, 10))["x"]
    ends = (gap["low"], gap["high"])
    for end in ends:  # a null at the end of the interval
        found = paired_differences({"x": a}, over_seeds([{"x": b}, {"x": c}]), speakers(12, 10), {"x": end})
        assert found["x"]["p"] == pytest.approx(0.05)
    assert gap["units"] == 12 and (gap["p"] < 0.05) == (ends[0] > 0 or ends[1] < 0)


def test_only_speakers_whose_clips_count_are_units() -> None:
    known = np.arange(24) < 11
    a, b = (ratio(known * x, known.astype(float)) for x in (0.2, np.linspace(0.3, 0.9, 24)))
    gap = paired_differences({"x": a}, {"x": b}, speakers(24))["x"]
    assert (gap["p"], gap["units"]) == (None, 11)


def test_holm_corrects_step_by_step() -> None:
    # 0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not fall below the one before
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    cells: dict[str, dict[str, float | None]] = {"a": {"p": 0.04}, "b": {"p": None}, "c": {"p": 0.03}}
    correct(cells)
    assert {name: cell["p_holm"] for name, cell in cells.items()} == {"a": 0.06, "b": None, "c": 0.06}


def test_ten_thousand_clips_take_seconds() -> None:
    values = {str(k): mean(np.random.default_rng(k).random(10_000)) for k in range(10)}
    start = time.process_time()
    intervals(values, clusters_of(clips([None] * 10_000)))
    paired_differences({"x": values["0"]}, {"x": values["1"]}, speakers(100, 100))
    assert time.process_time() - start < 5


def test_seeds_are_pooled_by_the_mean_of_their_scores_without_the_same_speaker() -> None:
    seeds = spoken(np.random.default_rng(5), (0.3, 0.6, 0.9), 5, 12)
    found = pooled([{"uar": seed} for seed in seeds], speakers(5, 12))["uar"]
    alone = [seed.value for seed in seeds]
    assert found["value"] == pytest.approx(np.mean(alone)) and found["runs"] == 3
    assert found["spread"] == pytest.approx(np.std(alone, ddof=1))
    left = [np.arange(60) // 12 != s for s in range(5)]
    without = np.array([np.mean([uar(seed.sums[keep].sum(axis=0)) for seed in seeds]) for keep in left])
    wanted = jackknife(float(np.mean(alone)), without, np.full(5, 12.0), 1.0)
    assert [found["low"], found["high"]] == pytest.approx([wanted["low"], wanted["high"]])


def test_seeds_that_err_on_other_speakers_have_a_narrow_interval_together() -> None:
    # each seed fails on one speaker: alone each interval is wide, their mean is the same for every speaker
    clusters = clusters_of(clips(["a", "a", "b", "b"]))
    runs = [{"x": mean(np.array([0.0, 0, 1, 1]))}, {"x": mean(np.array([1.0, 1, 0, 0]))}]
    found = pooled(runs, clusters)["x"]
    assert (found["low"], found["value"], found["high"]) == pytest.approx((0.5, 0.5, 0.5))
    alone = intervals(runs[0], clusters)["x"]
    assert alone["low"] < 0.01 and alone["high"] > 0.99


def test_one_seed_is_itself_and_scores_that_a_seed_lacks_are_left_out() -> None:
    one = {"x": mean(np.arange(4.0)), "y": mean(np.ones(4))}
    found = pooled([one], speakers(4))
    assert {k: found["x"][k] for k in ("value", "low", "high")} == intervals(one, speakers(4))["x"]
    assert found["x"]["spread"] is None
    assert over_seeds([one, {"x": one["x"]}]).keys() == {"x"}


def test_a_score_that_one_seed_does_not_define_has_no_value() -> None:
    defined, none = ratio(np.ones(4), np.ones(4)), ratio(np.zeros(4), np.zeros(4))
    found = pooled([{"x": defined}, {"x": none}], speakers(4))["x"]
    assert (found["value"], found["low"], found["high"], found["spread"]) == (None, None, None, None)


def test_uar_leaves_out_labels_without_clips_and_clips_without_label() -> None:
    sums = recall_sums(["a", "a", "b", None], ["a", "b", "b", "a"], ["a", "b", "c"])
    assert sums.shape == (4, 6) and not sums[3].any()
    assert uar(sums.sum(axis=0)) == pytest.approx(0.75)
    assert np.isnan(uar(np.zeros(6)))
    assert uar(sums.sum(axis=0)[None].repeat(2, 0)).shape == (2,)


# ---- simulation

RUNS = int(os.environ.get("ALIGNCAP_SIMULATIONS", 1500))
TOGETHER = 25  # runs of the same speakers' numbers of clips, scored at once
RECALLS = np.array([1.5, 1, 0.5, 0, -0.3, -1])  # log odds of the recalls of six labels
Score = Callable[[Floats], Floats]
Draw = Callable[[np.random.Generator, Ints], tuple[list[Floats], Score]]


def draw_uar(shift: float) -> Draw:
    """Six labels of unequal shares; speakers differ in how well they are heard, and by which system."""

    def draw(rng: np.random.Generator, speaker: Ints) -> tuple[list[Floats], Score]:
        units, shape = speaker[-1] + 1, (len(speaker), TOGETHER)
        shares = rng.dirichlet(4 * np.array([1.5, 1.2, 1, 1, 0.8, 0.5]), units).cumsum(axis=1)
        label = np.minimum((rng.random((len(speaker), 1)) > shares[speaker]).sum(axis=1), 5)
        clips = np.repeat(np.eye(6)[label][:, None], TOGETHER, axis=1)
        ease = RECALLS[:, None] + shift + rng.normal(0, 0.8, (units, 1, TOGETHER))
        sums = []
        for _ in range(2):
            own = rng.normal(0, 0.5, (units, 1, TOGETHER)) + rng.normal(0, 0.4, (units, 6, TOGETHER))
            right = rng.random(shape) < expit(ease + own)[speaker, label]
            sums.append(np.concatenate([clips * right[..., None], clips], axis=2))
        return sums, uar

    return draw


def draw_mean(skew: float) -> Draw:
    """Skewed scores of clips, like CIDEr-D's, and of speakers."""

    def draw(rng: np.random.Generator, speaker: Ints) -> tuple[list[Floats], Score]:
        units = speaker[-1] + 1
        ease = rng.normal(0, skew, (units, TOGETHER))
        level = [np.exp(ease + rng.normal(0, skew / 2, ease.shape))[speaker] for _ in range(2)]
        values = [rng.gamma(1.0, scale) for scale in level]
        return [np.stack([x, np.ones_like(x)], axis=2) for x in values], lambda s: s[..., 0] / s[..., 1]

    return draw


def true_uar(shift: float) -> float:
    odds = np.random.default_rng(0).normal(0, np.sqrt(0.8**2 + 0.5**2 + 0.4**2), (1_000_000, 1))
    return float(expit(RECALLS + shift + odds).mean())


def each(sums: Floats, score: Score) -> Floats:
    """The score of every run."""
    return score(sums.reshape(*sums.shape[:-1], TOGETHER, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "units", [12, 24, 60] if "ALIGNCAP_SIMULATIONS" not in os.environ else [4, 6, 12, 24, 60]
)
@pytest.mark.parametrize(
    ("name", "draw", "top", "truth"),
    [
        ("UAR 0.55", draw_uar(0), 1.0, true_uar(0)),
        ("UAR 0.90", draw_uar(2.5), 1.0, true_uar(2.5)),
        ("mean, skewed", draw_mean(0.3), np.inf, np.exp(0.3**2 * 1.25 / 2)),
    ],
)
def test_simulated_level_and_coverage(
    name: str, draw: Draw, top: float, truth: float, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two systems that are equally good, on speakers of very unequal numbers of clips."""
    if units > FEWEST:
        monkeypatch.setattr("aligncap.utils.statistics.EXCHANGES", 199)
    rng = np.random.default_rng(units)
    rejected, covered = [], []
    for _ in range(0, RUNS, TOGETHER):
        sizes = np.maximum(4, np.exp(rng.normal(np.log(24), 0.8, units))).astype(int)
        speaker = np.repeat(np.arange(units), sizes)
        sums, score = draw(rng, speaker)
        clusters = Clusters(speaker, units, units, 0, "")
        a, b = (Statistic(x.reshape(len(x), -1), partial(each, score=score), top) for x in sums)
        gap = difference(a, b)
        rejected.append(exchanged(gap, clusters) <= 0.05)
        for one, limit, true in ((a, top, truth), (gap, None, 0.0)):
            values, (without, clips) = one.score(one.sums.sum(axis=0)), left_out(one, clusters)
            cells = [jackknife(v, w, clips, limit) for v, w in zip(values, without.T, strict=True)]
            covered.append([cell["low"] <= true <= cell["high"] for cell in cells])
    level, of_score, of_gap = (float(np.mean(x)) for x in (rejected, covered[::2], covered[1::2]))
    print(f"| {name} | {units} | {level:.3f} | {of_gap:.3f} | {of_score:.3f} |")
    if units >= FEWEST:
        assert level <= 0.06 and min(of_score, of_gap) >= 0.93


# ---- bootstrap


def test_the_bootstrap_of_what_all_speakers_share_has_no_width():
    clips = [Utterance(id=str(i), root=".", audio="a", corpus="c", speaker=f"s{i % 4}") for i in range(12)]
    curves = np.tile([-1.0, -0.5, 2.0], (12, 1))
    first = bootstrap(curves, clusters_of(clips), lambda mean: float(np.argmax(mean > 0)))
    assert first == {"value": 2.0, "low": 2.0, "high": 2.0}
    alone = bootstrap(curves, clusters_of(clips), lambda mean: float("nan"))
    assert alone == {"value": None, "low": None, "high": None}


def test_the_bootstrap_covers_a_mean_whose_unit_is_the_speaker():
    rng, covered, runs = np.random.default_rng(3), 0, 200
    clips = [Utterance(id=str(i), root=".", audio="a", corpus="c", speaker=f"s{i // 3}") for i in range(60)]
    for _ in range(runs):
        values = np.repeat(rng.normal(0, 1, 20), 3) + rng.normal(
            0, 0.5, 60
        )  # speakers differ more than clips
        cell = bootstrap(values[:, None], clusters_of(clips), lambda mean: float(mean[0]), 199)
        covered += cell["low"] <= 0 <= cell["high"]
    assert 0.88 <= covered / runs <= 0.98


def test_a_uar_no_better_than_chance_is_told_from_one_that_is_with_few_speakers():
    """Two speakers of eight clips: right answers are sure, one answer for all never, noise at its level."""
    rng = np.random.default_rng(0)
    truth = [label for _ in range(2) for label in "abcd" * 2]
    groups = [speaker for speaker in "xy" for _ in range(8)]
    assert chance_p(truth, truth, groups, 999) == 0.001
    assert chance_p(truth, ["a"] * 16, groups, 99) == 1
    assert chance_p(truth, ["none"] * 16, groups, 99) == 1
    ps = [chance_p(truth, rng.choice(list("abcd"), 16), groups, 99) for _ in range(300)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.08 and np.mean(np.array(ps) <= 0.5) > 0.3


def test_knowing_speakers_is_no_knowing_of_labels():
    """Each speaker has one answer, by which labels that differ between speakers are met: no evidence."""
    truth = ["a"] * 6 + ["b"] * 6
    assert chance_p(truth, truth, ["x"] * 6 + ["y"] * 6, 99) == 1
    assert chance_p(truth, truth, list(range(12)), 999) < 0.01  # clips of unknown speakers
