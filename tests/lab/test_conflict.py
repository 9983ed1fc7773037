"""The conflict study finds what was planted: who wins, in which layer, through which path and head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from planted import EMOTIONS, Planted, planted_clips, planted_study

from aligncap.lab.behaviour import answer_trials, answers_of, behaviour, compare
from aligncap.lab.lens import (
    collect_states,
    fit_translators,
    lens,
    probe_cells,
    probes,
    rise,
    text_states,
    turn,
)
from aligncap.lab.listening_heads import heads_table, listen_heads, mean_pull
from aligncap.lab.patching import Windows, patch_trials, patching
from aligncap.lab.remedies import find_remedies, head_remedies, prompt_remedies
from aligncap.lab.stimuli import Trial, halves, make_trials, many_voices, voice_of
from aligncap.utils.distributed import ALONE, Gathered
from aligncap.utils.errors import UserError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return planted_clips(tmp_path_factory.mktemp("stimuli"))


@pytest.fixture(scope="module")
def trials(clips):
    return make_trials(clips, EMOTIONS, ["en"], ["instruction"], 4, seed=0)


def conflicts(trials, count=24):
    return [t for t in trials if t.condition == "conflict"][:count]


def shares(model, trials):
    study, rows = planted_study(model), Gathered(ALONE)
    answer_trials(study, trials, rows)
    return behaviour(study, trials, rows)


@pytest.mark.parametrize("gains, winner", [((4.0, 8.0), "text"), ((8.0, 4.0), "audio")])
def test_who_is_made_to_win_wins(trials, gains, winner):
    found = shares(Planted(audio=(2, gains[0]), text=(4, gains[1])), trials)
    table = found["table"]
    assert table["audio"]["instruction"]["all"]["right"]["value"] == 1.0
    cells = table["conflict"]["instruction"]
    assert cells["all"][winner]["value"] == 1.0 and cells["heard"][winner]["value"] == 1.0
    assert cells["all"]["speakers"] == 12 and "no claim" not in cells["all"]["note"]
    assert {c for c in cells if c.startswith("emotion=")} == {f"emotion={e}" for e in EMOTIONS}
    assert table["consistent"]["instruction"]["all"]["right"]["value"] == 1.0
    assert found["label_mass"] > 0.9 and found["heard"] == 60


def test_a_deaf_model_follows_the_text_and_a_model_that_cannot_read_the_audio(trials):
    deaf = shares(Planted(audio=(2, 0.0)), trials)["table"]
    assert deaf["conflict"]["instruction"]["all"]["text"]["value"] == 1.0
    assert deaf["audio"]["instruction"]["all"]["right"]["value"] == pytest.approx(1 / 5)
    blind = shares(Planted(text=(4, 0.0)), trials)["table"]
    assert blind["conflict"]["instruction"]["all"]["audio"]["value"] == 1.0


def test_what_changes_from_one_model_to_another_is_tested_in_pairs(trials):
    told = {}
    for name, gains in {"text": (4.0, 8.0), "audio": (8.0, 4.0)}.items():
        study, rows = planted_study(Planted(audio=(2, gains[0]), text=(4, gains[1]))), Gathered(ALONE)
        answer_trials(study, trials, rows)
        told[name] = answers_of(study, trials, rows)
    alone, conflicting, consistent = compare(trials, told["text"], told["audio"])
    assert (alone["condition"], conflicting["condition"]) == ("audio", "conflict")
    assert alone["right"]["value"] == consistent["right"]["value"] == 0.0 and alone["right"]["p_holm"] == 1.0
    assert (conflicting["audio"]["value"], conflicting["text"]["value"]) == (1.0, -1.0)
    assert conflicting["audio"]["p"] == pytest.approx(2**-11)  # of 2^12 exchanges two are as far apart
    assert conflicting["audio"]["p"] < conflicting["audio"]["p_holm"] < 0.05
    same = compare(trials, told["text"], told["text"])
    assert all(row[key]["value"] == 0 for row in same for key in ("audio", "text", "right") if key in row)
    with pytest.raises(UserError, match="no prompt in common"):
        compare(trials, {"other": "sad"}, told["audio"])


def test_few_speakers_are_no_claim(clips):
    some = make_trials(clips[:25], EMOTIONS, ["en"], ["instruction"], 2, seed=0)
    cell = shares(Planted(), some)["table"]["conflict"]["instruction"]["all"]
    assert cell["speakers"] == 5 and "no claim" in cell["note"]


# ---- where


@pytest.mark.parametrize("block", [3, 4, 6])
def test_the_lens_finds_the_layer_where_the_text_takes_over(trials, block):
    study = planted_study(Planted(audio=(2, 4.0), text=(block, 8.0)))
    study.listen(t.clip for t in trials)
    own = conflicts(trials)
    found = lens(study, own, collect_states(study, own), None)["raw"]
    cell = found["groups"]["conflict, instruction, text wins"]
    assert cell["turn"] == {"value": block, "low": block, "high": block}
    assert cell["rise"]["value"] == block
    assert cell["mean"][1] == pytest.approx(0, abs=1e-4) and cell["mean"][2] == pytest.approx(-4, abs=1e-3)
    assert cell["mean"][-1] == pytest.approx(4, abs=1e-3)
    assert found["kl"][-1] == pytest.approx(0, abs=1e-6) and found["agreement"][-1] == 1.0


def test_where_nothing_is_told_the_curve_never_turns_to_the_text(trials):
    study = planted_study(Planted())
    own = [t for t in trials if t.condition == "audio"][:20]
    study.listen(t.clip for t in own)
    cell = lens(study, own, collect_states(study, own), None)["raw"]["groups"]["audio"]
    assert cell["mean"][-1] == pytest.approx(-4, abs=1e-3) and cell["rise"]["value"] == 2


def test_the_tuned_lens_reads_rotated_layers_that_the_raw_one_cannot(trials):
    study = planted_study(Planted(audio=(2, 4.0), text=(4, 8.0), rotated=True))
    study.listen(t.clip for t in trials)
    own = conflicts(trials)
    held = [t for t in trials if t.clip.id not in {o.clip.id for o in own}]
    translators = fit_translators(text_states(study, held))
    found = lens(study, own, collect_states(study, own), translators)
    at = 5  # everything is decided here, and written in another basis
    assert found["tuned"]["kl"][at] < 0.1 * found["raw"]["kl"][at]
    assert found["tuned"]["agreement"][at] == 1.0 > found["raw"]["agreement"][at]
    assert found["tuned"]["groups"]["conflict, instruction"]["turn"]["value"] == 4
    assert found["tuned"]["kl"][-1] == pytest.approx(0, abs=1e-6)  # the last state is not translated


def test_translators_recover_an_affine_map_and_leave_the_last_state():
    torch.manual_seed(0)
    last = torch.randn(400, 12)
    turned = torch.linalg.qr(torch.randn(12, 12))[0]
    states = torch.stack([last @ turned + 3.0, last])
    moved = fit_translators(states[:, :300])(states[:, 300:])
    torch.testing.assert_close(moved[0], last[300:], atol=0.02, rtol=0.02)
    assert torch.equal(moved[1], last[300:])
    few = fit_translators(states[:, :8])  # fewer tokens than dimensions: the dual form
    assert few(states[:, 300:]).isfinite().all()


def test_probes_find_the_voice_in_sound_at_once_and_in_the_answer_from_its_block_on(trials):
    study = planted_study(Planted(audio=(3, 4.0), text=(5, 8.0)))
    study.listen(t.clip for t in trials)
    own = [t for t in trials if t.condition != "consistent"][:150]
    found = probes(own, collect_states(study, own))["conflict"]
    values = {name: [cell["value"] for cell in found[name]] for name in found if "from" in name}
    assert values["A from audio"] == [1.0] * 7
    # From block 5 on the answer is 4 A + 8 T, which no linear reading takes A from.
    assert max(values["A from answer"][:3]) < 0.45 and values["A from answer"][3:5] == [1.0, 1.0]
    assert max(values["T from answer"][:5]) < 0.45 and min(values["T from answer"][5:]) == 1.0


def test_a_probe_of_random_features_is_at_chance(trials):
    own = [t for t in trials if t.condition == "conflict"]
    torch.manual_seed(0)
    cells = probe_cells(torch.randn(4, len(own), 30), [t.clip.emotion for t in own], own)
    for cell in cells:
        assert cell["value"] < 0.3 and cell["low"] < 0.2 < cell["high"] + 0.05


def test_where_a_curve_turns_and_rises():
    assert turn(np.array([1.0, 2.0, 3.0])) == 0 and rise(np.array([1.0, 2.0, 3.0])) == 1
    assert turn(np.array([-1.0, 1.0, -1.0, 2.0])) == 3
    assert np.isnan(turn(np.array([1.0, 0.0]))) and np.isnan(rise(np.array([1.0, 0.0])))


# ---- who


def patched(model, trials, clips, size=2):
    study, rows = planted_study(model), Gathered(ALONE)
    windows = Windows(model.blocks, size, 1)
    patch_trials(study, conflicts(trials), clips, windows, rows)
    return patching(study, conflicts(trials), windows, rows)


def effects(found, path):
    spans = found["windows"]["cuts" if "cut" in path else "states"]
    return {tuple(s): round(c["effect"]["value"], 2) for s, c in zip(spans, found["all"][path])}


def test_patches_act_until_their_block_has_read_and_not_after(trials, clips):
    found = patched(Planted(audio=(2, 4.0), text=(4, 8.0)), trials, clips)
    # Block 4 reads state 3: a patch counts in every window before. It gives A 8 and takes 8 from T.
    assert effects(found, "text") == {(0, 1): 16, (1, 2): 16, (2, 3): 16, (3, 4): 16, (4, 5): 0}
    # Block 2 reads state 1. The patch gives T 4 and takes 4 from A.
    assert effects(found, "audio") == {(0, 1): 8, (1, 2): 8, (2, 3): 0, (3, 4): 0, (4, 5): 0}
    cell = found["all"]["text"][3]
    assert cell["normal"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert cell["flips"]["value"] == 1.0 and cell["eligible"] == 24
    assert found["all"]["audio"][0]["normal"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert found["all"]["audio"][0]["eligible"] == 0  # all follow the text already


def test_cuts_find_the_block_of_each_path_and_unused_paths_change_nothing(trials, clips):
    found = patched(Planted(audio=(2, 4.0), text=(4, 8.0)), trials, clips, size=1)
    assert effects(found, "cut text") == {(b, b): (8.0 if b == 4 else 0.0) for b in range(1, 7)}
    assert effects(found, "cut audio") == {(b, b): (4.0 if b == 2 else 0.0) for b in range(1, 7)}
    assert found["all"]["no text"]["effect"]["value"] == pytest.approx(8, abs=1e-3)
    assert found["all"]["no text"]["flips"]["value"] == 1.0
    assert found["all"]["no audio"]["effect"]["value"] == pytest.approx(4, abs=1e-3)
    deaf = patched(Planted(audio=(2, 0.0), text=(4, 8.0)), trials, clips, size=1)
    for path in ("audio", "cut audio", "back"):
        assert all(cell["effect"]["value"] == pytest.approx(0, abs=1e-5) for cell in deaf["all"][path])


def test_back_patches_of_states_that_say_the_same_change_nothing(trials, clips):
    found = patched(Planted(), trials, clips)
    assert all(abs(cell["effect"]["value"]) < 1e-4 for cell in found["all"]["back"])
    assert len(found["all"]["back"]) == len(found["windows"]["back"]) == 15


def test_the_listening_head_is_found(trials):
    model = Planted(audio=(3, 8.0), text=(5, 4.0))
    study, rows = planted_study(model), Gathered(ALONE)
    listen_heads(study, conflicts(trials), rows)
    table = heads_table(conflicts(trials), rows)
    assert np.array(table["audio share"])[2, 0] == pytest.approx(1.0, abs=1e-3)
    assert np.array(table["text share"])[4, 1] == pytest.approx(1.0, abs=1e-3)
    # All of its attention is on sound already: more weight there changes nothing.
    assert np.abs(mean_pull(conflicts(trials), rows)).max() < 1e-3


def weak_listener(audio_gain=8.0):
    """Its head gives sound a small share only, so that the text wins; more attention makes the voice win."""
    model = Planted(audio=(3, audio_gain), text=(5, 4.0))
    model.trunk.attention(3).q_proj.weight.data[0] *= 0.0
    return model


def test_the_head_that_would_help_pulls(trials):
    study, rows = planted_study(weak_listener()), Gathered(ALONE)
    listen_heads(study, conflicts(trials), rows)
    best = heads_table(conflicts(trials), rows)["best"][0]
    assert (best["block"], best["head"]) == (3, 0) and best["pull"]["value"] > 0.5
    others = mean_pull(conflicts(trials), rows)
    others[2, 0] = 0
    assert np.abs(others).max() < 1e-5


def test_steering_the_head_is_chosen_on_some_speakers_and_works_on_the_others(trials):
    study, rows = planted_study(weak_listener(16.0)), Gathered(ALONE)
    first, second = halves(many_voices(t.clip for t in trials), 0)
    choose, measure = ([t for t in trials if voice_of(t.clip) in part] for part in (first, second))
    listen_heads(study, [t for t in choose if t.condition == "conflict"], rows)
    kinds = {
        "prompt": prompt_remedies(),
        "heads": head_remedies(mean_pull([t for t in choose if t.condition == "conflict"], rows)),
    }
    found = find_remedies(study, kinds, choose, measure, rows)
    assert found["choosing"] == found["measured"] == 6 and "no claim" in found["note"]
    heads, prompt = found["kinds"]["heads"], found["kinds"]["prompt"]
    assert heads["gain"]["conflict"]["value"] > 0.5 and heads["after"]["conflict"]["value"] == 1.0
    assert heads["gain"]["audio"]["value"] >= 0 and heads["divergence"] > 0
    assert abs(prompt["gain"]["conflict"]["value"]) < 0.3 and prompt["divergence"] == 0


# ---- trials


def test_trials_are_balanced_and_say_what_they_should(clips):
    found = make_trials(clips, EMOTIONS, ["en", "zh"], ["instruction", "transcript"], 4, seed=1)
    own = [t for t in found if t.condition == "conflict"]
    assert len(own) == 4 * 60 and len({t.key for t in found}) == len(found)
    assert all(t.told != t.clip.emotion for t in own)
    for attribute in ("place", "language"):
        counts = [sum(getattr(t, attribute) == v for t in own) for v in {getattr(t, attribute) for t in own}]
        assert max(counts) == min(counts)
    told = [sum(t.told == e for t in own) for e in EMOTIONS]
    assert max(told) - min(told) <= 20
    trial = next(t for t in own if t.place == "instruction" and t.language == "zh" and t.told == "angry")
    assert "愤怒" in trial.question().instruction and trial.question().transcript is None
    trial = next(t for t in own if t.place == "transcript" and t.language == "en" and t.told == "sad")
    assert trial.question().transcript == "I miss her so much, I cannot stop crying."
    assert "sad" not in trial.question().instruction
    audio = next(t for t in found if t.condition == "audio")
    assert audio.told and audio.named == "" and audio.told not in audio.question().instruction


def test_a_remedy_stands_around_the_question(clips):
    trial = Trial(clips[0], "conflict", "en", 0, "instruction", "sad", remedy=0)
    plain = Trial(clips[0], "conflict", "en", 0, "instruction", "sad")
    assert (
        trial.question().instruction
        == f"Listen to the voice, not to the words. {plain.question().instruction}"
    )
    assert trial.key != plain.key


# ---- the command


def test_a_second_run_takes_everything_from_the_journal(clips, tmp_path):
    from aligncap.lab.conflict import ConflictConfig, conflict
    from aligncap.utils.journal import Journal

    options = {"languages": ["en"], "places": ["instruction"], "window": 2, "patched": 6, "tried": 10}
    config = ConflictConfig(model="m", out="o", parts=["patching", "heads"], **options)
    runs = []
    for _ in range(2):
        study = planted_study(Planted())
        passes: list[int] = []
        language = study.model.model.model.language_model
        language.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        journal = Journal(tmp_path / "conflict.json", {"same": 1})
        runs.append((conflict(study, config, clips[:30], journal), len(passes)))
        journal.close(done=False)
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] > 40 and runs[1][1] == 0


def test_the_command_on_a_folder_of_ones_own_speech(clips, tmp_path, monkeypatch, capsys):
    from tiny import save_model

    from aligncap.cli import main

    monkeypatch.chdir(tmp_path)
    for clip in clips[:10]:
        (tmp_path / "tts").mkdir(exist_ok=True)
        (tmp_path / "tts" / clip.path.name).write_bytes(clip.path.read_bytes())
    save_model(tmp_path / "model")
    words = "lab conflict --model model --stimuli tts --out found --languages en --conflicts 2 --lensed 16"
    words += " --patched 3 --tried 4 --window 1 --device cpu --emotions neutral happy sad angry"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "voice against text, 2 speakers" in shown and "no claim" in shown
    found = json.loads((tmp_path / "found" / "conflict.json").read_text())
    assert found["trials"] == {"audio": 8, "conflict": 16, "consistent": 16}
    assert {"behaviour", "lens", "patching", "heads", "remedies", "findings"} <= {*found}
    page = (tmp_path / "found" / "report.html").read_text()
    pictures = ("behaviour", "lens", "probe", "patching", "back", "heads", "remedies")
    for name in pictures:
        assert f'src="{name}.png"' in page and (tmp_path / "found" / f"{name}.png").stat().st_size > 5_000
    assert "Arbitration late" in page and "fewer than 12 speakers: no claim" in page
    assert (tmp_path / "found" / "run.json").is_file() and not list(tmp_path.glob("found/*.partial"))
    words = words.replace("--out found", "--out again --parts none --against found/conflict.json")
    assert main(words.split()) == 0
    assert "Against model, conflict in the instruction: audio 0.00" in capsys.readouterr().out
    assert "What changed" in (tmp_path / "again" / "report.html").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--emotions happy grumpy sad", "emotions=grumpy: no such label"),
        ("--emotions happy", "two or more are needed"),
        ("--languages en en", "languages=en en: one is named twice"),
        ("--stimuli nowhere", "nowhere: no such manifest or folder"),
        ("--against nothing.json", "nothing.json: holds no answers"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, capsys, words, message):
    from aligncap.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(f"lab conflict --model m --out o {words}".split()) == 2
    assert message in capsys.readouterr().err


def test_files_of_a_folder_with_other_names_are_all_named(tmp_path):
    from aligncap.lab.stimuli import read_stimuli
    from aligncap.utils.errors import UserErrors

    for name in ("happy_en_anna.wav", "grumpy_en_anna.wav", "sad.wav"):
        (tmp_path / name).touch()
    with pytest.raises(UserErrors) as caught:
        read_stimuli(tmp_path, EMOTIONS)
    assert "grumpy_en_anna" in str(caught.value) and "sad.wav" in str(caught.value)


def test_the_nine_stimuli_are_made_in_two_languages(tmp_path):
    pytest.importorskip("espeakng_loader")
    from aligncap.data.synthetic.stimuli import make_stimuli
    from aligncap.lab.stimuli import read_stimuli

    path = make_stimuli(tmp_path / "made", 2)
    found = read_stimuli(path, EMOTIONS)
    assert len(found) == 2 * 9 * 2 and {s.language for s in found} == {"en", "zh"}
    assert sum(s.emotion == "neutral" for s in found) == 4 and all(
        s.path.stat().st_size > 20_000 for s in found
    )
    assert make_stimuli(tmp_path / "made", 2) == path


def test_clips_are_chosen_evenly_and_intensities_in_turn(clips):
    from aligncap.lab.stimuli import Stimulus, choose_stimuli

    many = [
        Stimulus(f"{e}{s}{k}{i}", clips[0].path, "c", f"v{s}", e, k, "en")
        for e in ("sad", "happy")
        for s in range(4)
        for k in ("normal", "strong")
        for i in range(2)
    ]
    chosen = choose_stimuli(many, 1, seed=0)
    assert len(chosen) == 8 and sum(s.intensity == "strong" for s in chosen) == 4
    assert len(choose_stimuli(many, 9, seed=0)) == len(many)


def interval(value, low=None, high=None):
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


@pytest.mark.parametrize(
    "text, audio, verdict",
    [
        ((20, 18, 22), (16, 14, 20), "holds"),
        ((3, 2, 5), (4, 3, 6), "does not hold"),
        ((20, 18, 22), (8, 5, 13), "open"),
    ],
)
def test_arbitration_is_late_where_all_intervals_are(text, audio, verdict):
    from aligncap.lab.conflict_report import arbitration

    cells = {
        f"conflict, instruction, {w} wins": {"rise": interval(*r), "trials": 9}
        for w, r in (("text", text), ("audio", audio))
    }
    lens = {"raw": {"groups": {"audio": {}, "conflict, instruction": {}, **cells}}}
    (line,) = arbitration(lens, 24)
    assert f"Arbitration late, conflict, instruction: {verdict};" in line


@pytest.mark.parametrize(
    "text, audio, verdict",
    [
        ([0, 4, 1], [0.5, 0.5, 0], "holds"),
        ([4, 4, 0], [0.5, 0.5, 0], "holds"),  # read in the middle, so patches before act too
        ([4, 4, 4], [0.5, 0.5, 0], "does not hold"),  # read late
        ([4, 1, 0], [0.5, 0.5, 0], "does not hold"),  # read early
        ([0, 1, 0], [3, 2, 0], "does not hold"),
        ([0, 2, 0], [2.1, 2, 0], "open"),
        ([0.1, 0.1, 0.2], [0.3, 0.3, 0], "open"),  # nothing is sure
        ([-1.0, -0.2, -0.3], [0.1, 0.0, 0], "open"),  # against what is expected
    ],
)
def test_the_text_is_causal_in_the_middle_where_its_patches_are_strongest_there(text, audio, verdict):
    from aligncap.lab.conflict_report import causes

    cells = {
        path: [{"effect": interval(v, v - 0.3, v + 0.3)} for v in values]
        for path, values in (("text", text), ("audio", audio))
    }
    found = {"all": cells, "windows": {"states": [[0, 7], [8, 15], [16, 23]]}}
    assert f"audio patches weak, all: {verdict};" in causes(found, 24)


def test_no_prompt_of_a_clip_is_asked_twice(clips):
    two = [clip for clip in clips if clip.emotion in EMOTIONS[:2]]
    found = make_trials(two, EMOTIONS[:2], ["en"], ["transcript"], 9, seed=0)
    assert two and len({trial.key for trial in found}) == len(found)
