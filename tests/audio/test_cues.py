"""Measured cues on made voices whose truth is known, and on real speech."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from aligncap.audio.cues import measure, measure_many, relative
from aligncap.utils.io import load_data

RATE = 16_000
CORPORA = Path(os.environ.get("ALIGNCAP_CORPORA", Path(__file__).resolve().parents[2] / "../shared/corpora"))


def voice(f0: np.ndarray, tilt: float = -1.0) -> np.ndarray:
    """Harmonics below 5 kHz whose amplitude falls as k ** tilt; `f0` in Hz at every sample."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    out = np.zeros_like(f0)
    for k in range(1, int(5000 / f0.max()) + 1):
        out += k**tilt * np.cos(k * phase)
    return 0.3 * out / np.abs(out).max()


def flat(hertz: float, seconds: float = 1.5) -> np.ndarray:
    return np.full(int(seconds * RATE), float(hertz))


def syllables(count: int, rate: float, pause: float = 0.0, hertz: float = 150.0) -> np.ndarray:
    """Bursts of voice, `rate` a second, with a silent gap of `pause` seconds in the middle."""
    t = np.arange(int(count / rate * RATE)) / RATE
    x = voice(flat(hertz, len(t) / RATE)) * (0.02 + np.sin(np.pi * rate * t) ** 2)
    half = int(round(count // 2 / rate * RATE))
    return np.concatenate([x[:half], np.zeros(int(pause * RATE)), x[half:]])


@settings(max_examples=25, deadline=None)
@given(st.floats(75, 480), st.floats(-1.5, -0.5))
def test_f0_of_a_steady_voice_is_found(hertz: float, tilt: float) -> None:
    cues = measure(voice(flat(hertz), tilt))
    assert cues["f0_median_hz"] == pytest.approx(hertz, rel=0.015)
    assert cues["f0_movement_st"] < 0.5


@settings(max_examples=15, deadline=None)
@given(st.floats(-35, 10))
def test_every_cue_but_level_is_independent_of_recording_level(gain_db: float) -> None:
    x = syllables(6, 4.0)
    before, after = measure(x), measure(x * 10 ** (gain_db / 20))
    assert after.pop("level_dbfs") == pytest.approx(before.pop("level_dbfs") + gain_db, abs=0.01)
    assert after == pytest.approx(before, rel=1e-3, abs=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.floats(2, 12))
def test_movement_is_the_width_of_a_sweep(semitones: float) -> None:
    f0 = 150 * 2 ** (np.linspace(0, semitones, 2 * RATE) / 12)
    assert measure(voice(f0))["f0_movement_st"] == pytest.approx(0.9 * semitones, abs=0.4)


@settings(max_examples=12, deadline=None)
@given(st.floats(-2.5, -0.3), st.floats(0.2, 1.0), st.floats(90, 300))
def test_effort_grows_with_energy_in_the_upper_harmonics(tilt: float, change: float, hertz: float) -> None:
    soft, pressed = (measure(voice(flat(hertz, 0.6), t))["effort_db"] for t in (tilt - change, tilt))
    assert pressed > soft + 1


@pytest.mark.parametrize("rate", [2.5, 4.0, 5.5])
def test_rate_counts_syllables(rate: float) -> None:
    assert measure(syllables(10, rate))["rate_sps"] == pytest.approx(rate, rel=0.1)


def test_pauses_are_measured_and_left_out_of_the_rate() -> None:
    cues = measure(np.pad(syllables(8, 4.0, pause=1.0), 8_000))
    assert cues["pause_share"] == pytest.approx(1 / 3, abs=0.06)
    assert cues["rate_sps"] == pytest.approx(4.0, rel=0.15)
    assert measure(np.pad(syllables(8, 4.0), 8_000))["pause_share"] == 0


@pytest.mark.parametrize("hertz", [120.0, 220.0])
def test_a_trembling_voice_is_less_steady_than_a_gliding_one(hertz: float) -> None:
    random = np.random.default_rng(0)
    n = 2 * RATE
    wobble = np.interp(np.arange(n), np.arange(0, n + 400, 400), random.standard_normal(n // 400 + 1))
    shaky = measure(voice(hertz * 2 ** (0.5 * wobble / 12)) * (1 + 0.3 * wobble.clip(-2, 2)))
    glide = measure(voice(hertz * 2 ** (np.linspace(0, 10, n) / 12)))
    assert shaky["unsteadiness"] > glide["unsteadiness"] + 10


def test_what_cannot_be_measured_is_absent() -> None:
    whisper = measure(np.random.default_rng(0).standard_normal(RATE) * 0.05)
    assert not {"f0_median_hz", "f0_movement_st", "effort_db", "unsteadiness", "rate_sps"} & whisper.keys()
    assert whisper["duration_s"] == 1.0
    assert measure(np.zeros(RATE)) == {"duration_s": 1.0}
    assert measure(np.zeros(0)) == {"duration_s": 0.0}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20_000), st.sampled_from(["noise", "clicks", "tone", "steps"]))
def test_any_samples_give_finite_cues(length: int, kind: str) -> None:
    random = np.random.default_rng(length)
    x = {
        "noise": random.standard_normal(length) * 0.1,
        "clicks": (random.random(length) > 0.999) * 1.0,
        "tone": np.sin(np.arange(length) * random.uniform(0.01, 1)),
        "steps": np.repeat(random.uniform(-1, 1, length // 100 + 1), 100)[:length],
    }[kind]
    cues = measure(x)
    assert all(np.isfinite(value) for value in cues.values())
    assert all(0 <= cues[key] <= 1 for key in ("pause_share", "voiced_share") if key in cues)


def test_samples_that_are_no_clip_are_refused() -> None:
    for bad in (np.zeros((2, 100)), np.array([0.1, np.nan])):
        with pytest.raises(ValueError, match="finite mono"):
            measure(bad)


CUES = {
    "f0_median_hz": 200.0,
    "f0_movement_st": 8.0,
    "effort_db": -12.0,
    "rate_sps": 4.0,
    "pause_share": 0.1,
    "unsteadiness": 12.0,
    "voiced_share": 0.7,
    "duration_s": 3.0,
    "level_dbfs": -30.0,
}


def pitched(*hertz: float) -> list[dict[str, float]]:
    return [{**CUES, "f0_median_hz": value} for value in hertz]


def test_a_speaker_of_eight_clips_is_the_own_norm_and_one_of_seven_is_not() -> None:
    high = pitched(*np.linspace(280, 320, 9))
    own = relative(high, ["a"] * 9, ["female"] * 9)
    assert own[4]["f0_median_hz"] == pytest.approx(0, abs=1e-6)
    assert own[0]["f0_median_hz"] < -1 < 1 < own[8]["f0_median_hz"]
    few = relative(high[:7], ["a"] * 7, ["female"] * 7)
    assert all(clip["f0_median_hz"] > 1 for clip in few)


def test_the_gender_decides_without_a_speaker() -> None:
    woman, man, unknown = relative(pitched(165, 165, 165), [None] * 3, ["female", "male", None])
    assert woman["f0_median_hz"] < -0.5 < unknown["f0_median_hz"] < 0.5 < man["f0_median_hz"]


def test_clips_without_a_cue_neither_get_nor_lend_one() -> None:
    clips: list[dict[str, float]] = [*pitched(*[200.0] * 8), {"duration_s": 1.0}]
    found = relative(clips, ["a"] * 9, [None] * 9)
    assert found[8] == {}
    assert found[0].keys() == CUES.keys() - {"duration_s", "level_dbfs"}


def test_an_even_speaker_does_not_make_small_changes_large() -> None:
    assert relative(pitched(*[200.0] * 8, 202.0), ["a"] * 9, [None] * 9)[8]["f0_median_hz"] < 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(80, 400), min_size=8, max_size=20), st.floats(0.5, 2))
def test_relative_pitch_is_the_same_an_interval_higher(hertz: list[float], factor: float) -> None:
    speakers, genders = ["a"] * len(hertz), [None] * len(hertz)
    low = relative(pitched(*hertz), speakers, genders)
    high = relative(pitched(*[value * factor for value in hertz]), speakers, genders)
    for a, b in zip(low, high, strict=True):
        assert a["f0_median_hz"] == pytest.approx(b["f0_median_hz"], abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_relative_cues_do_not_depend_on_the_order_of_clips(order: list[int]) -> None:
    clips, speakers = pitched(*np.linspace(100, 300, 12)), ["a", "b", None] * 4
    plain = relative(clips, speakers, ["male"] * 12)
    moved = relative([clips[i] for i in order], [speakers[i] for i in order], ["male"] * 12)
    assert moved == [plain[i] for i in order]


def test_sequences_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cues, 1 speakers, 2 genders"):
        relative(pitched(100, 200), ["a"], [None, None])


def test_every_relative_cue_has_a_norm_for_each_gender() -> None:
    norms = load_data("cues.yaml")["cues"]
    assert norms.keys() == CUES.keys() - {"duration_s", "level_dbfs"}
    for norm in norms.values():
        assert norm["norm"].keys() == {"female", "male", "any"}
        assert norm["scale"] in ("linear", "semitones", "octaves")
        assert min(norm["min_spread"], *(width for _, width in norm["norm"].values())) > 0
    assert load_data("cues.yaml")["min_clips"] == 8


def test_many_files_keep_their_order_and_bad_ones_say_why(tmp_path: Path) -> None:
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.wav")
        soundfile.write(paths[-1], voice(flat(100 + 10 * index, 0.4)), RATE)
    paths[7].write_text("no sound")
    paths[9] = tmp_path / "none.wav"
    plain = measure_many(paths, workers=1)
    assert isinstance(plain[7], str) and plain[7].startswith(f"{paths[7]}: not a sound file")
    assert isinstance(plain[9], str) and "no such file" in plain[9]
    assert isinstance(plain[3], dict) and plain[3]["f0_median_hz"] == pytest.approx(130, rel=0.02)
    assert measure_many(paths, workers=2) == plain
    assert measure_many([]) == []


@pytest.mark.real
def test_on_real_speech_anger_is_pressed_calm_soft_and_seven_syllables_are_about_seven() -> None:
    folders = [CORPORA / "ravdess" / f"Actor_{actor:02d}" for actor in (1, 2)]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip(f"RAVDESS is not under {CORPORA}; set ALIGNCAP_CORPORA")
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    names = [path.stem.split("-") for path in paths]
    measured = measure_many(paths)
    assert not [error for error in measured if isinstance(error, str)]
    cues = [clip for clip in measured if isinstance(clip, dict)]
    values = relative(cues, [name[6] for name in names], [None] * len(names))

    def median(key: str, emotion: str, *intensities: str) -> float:
        chosen = [
            v[key] for v, n in zip(values, names, strict=True) if n[2] == emotion and n[3] in intensities
        ]
        return float(np.median(chosen))

    for other in ("01", "02", "04"):
        assert median("effort_db", "05", "02") > median("effort_db", other, "01", "02") + 1
        assert median("f0_median_hz", "05", "02") > median("f0_median_hz", other, "01", "02") + 1
    assert median("unsteadiness", "06", "02") > median("unsteadiness", "02", "01", "02") + 0.5
    assert median("f0_movement_st", "08", "01", "02") > median("f0_movement_st", "04", "01", "02") + 0.5
    spoken = [c["rate_sps"] * (1 - c["pause_share"]) for c in cues]
    assert 3 < np.median(spoken) < 5
