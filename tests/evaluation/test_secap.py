"""SECap's protocol: which samples stay, and that the scores are those of the kept ones."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.evaluation.metrics import similarity
from aligncap.evaluation.metrics.similarity import Encoder, kept, secap_note, secap_runs
from aligncap.evaluation.scoring import System, evaluate_captions, score_rows
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl

SAMPLES = [
    "He sounds sad and slow.",
    "A banana on the table.",
    "He sounds sad, slow and soft.",
    "He sounds very sad and slow.",
    "Ten trains left at noon.",
    "He is sad and slow.",
    "He sounds sad and slow.",
    "Umbrella keyboard.",
]


def utterances() -> list[Utterance]:
    return [
        Utterance(
            f"c{i}",
            ".",
            "x.wav",
            "made",
            speaker=f"s{i}",
            emotion="sad",
            captions=["He sounds sad and slow."],
        )
        for i in range(3)
    ]


def rows() -> list[dict[str, Any]]:
    """Three clips whose samples stand in other orders; rows of clips mixed, as any order is allowed."""
    return [
        {"id": f"c{clip}", "candidate": place, "caption": SAMPLES[(place + clip) % 8], "audio": "x.wav"}
        for place in range(8)
        for clip in range(3)
    ]


def secap_scores(candidates: Any, references: list[Utterance], **options: Any) -> dict[str, Any]:
    runs = secap_runs(candidates, **options)
    return System("x", [score_rows(run, references, wordnet="none") for run in runs]).cells


def test_the_three_odd_ones_are_dropped_and_the_rest_keep_their_order() -> None:
    runs = secap_runs(rows(), similarity="words")
    assert len(runs) == 5 and all([row["id"] for row in run] == ["c0", "c1", "c2"] for run in runs)
    assert [run[0]["caption"] for run in runs] == [SAMPLES[i] for i in (0, 2, 3, 5, 6)]
    assert [run[1]["candidate"] for run in runs] == [1, 2, 4, 5, 7]
    assert all("x.wav" == row["audio"] for run in runs for row in run)


def test_each_is_judged_against_all_others_once() -> None:
    alike = np.array([[1, 0.9, 0.1, 0.5], [0.9, 1, 0.2, 0.4], [0.1, 0.2, 1, 0.3], [0.5, 0.4, 0.3, 1]])
    assert kept(alike, 1) == [0, 1, 3] and kept(alike, 2) == [0, 1] and kept(alike, 0) == [0, 1, 2, 3]
    assert kept(np.ones((4, 4)), 2) == [0, 1]  # of equals the earlier stay
    crooked = np.full((3, 3), 1.0) + 1e-15 * np.arange(9).reshape(3, 3)
    assert kept(crooked, 1) == [0, 1]


def test_scores_are_the_mean_over_the_kept_samples() -> None:
    options: dict[str, Any] = {"wordnet": "none"}
    scores = secap_scores(rows(), utterances(), similarity="words")
    each = [
        evaluate_captions(run, utterances(), **options)["bleu_1"]["value"]
        for run in secap_runs(rows(), similarity="words")
    ]
    assert scores["bleu_1"]["value"] == pytest.approx(np.mean(each))
    assert scores["bleu_1"]["spread"] == pytest.approx(np.std(each, ddof=1)) and scores["bleu_1"]["runs"] == 5
    everything = secap_scores(rows(), utterances(), similarity="words", dropped=0)
    assert scores["emotion_accuracy"]["value"] == 1.0
    assert everything["emotion_accuracy"]["value"] == pytest.approx(5 / 8)
    assert "3 least similar" in secap_note("words") and "words" in secap_note("words")


def test_references_have_no_say_in_what_is_dropped() -> None:
    made = utterances()
    for u in made:
        u.captions = ["A banana on the table."]
    assert secap_scores(rows(), made, similarity="words")["bleu_1"]["value"] < 0.2


def test_the_encoder_is_used_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts: Any) -> np.ndarray:  # the odd ones out alike, all others apart
        odd = ("banana", "trains", "Umbrella")
        angles = [0.01 * i if any(w in t for w in odd) else 1 + 0.5 * i for i, t in enumerate(texts)]
        return np.array([[np.cos(a), np.sin(a)] for a in angles], np.float32)

    monkeypatch.setattr(similarity, "find_encoder", lambda: Encoder("made", encode))
    assert "banana" in " ".join(
        row["caption"] for run in secap_runs(rows(), similarity="encoder") for row in run
    )
    scored = [score_rows(run, utterances()) for run in secap_runs(rows(), similarity="encoder")]
    system = System("x", scored, note=secap_note("encoder"))
    assert "by made" in system.signature["protocol"]


def test_without_encoder_it_stops_and_names_both_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "find_encoder", lambda: None)
    with pytest.raises(UserError, match="models fetch all-minilm-l6-v2.*secap-words"):
        secap_runs(rows(), similarity="encoder")
    chinese = [{**row, "caption": "声音低沉"} for row in rows()]
    with pytest.raises(UserError, match="which is English.*secap-words"):
        secap_runs(chinese, similarity="encoder")
    assert len(secap_runs(chinese, similarity="words")) == 5


def test_wrong_files_are_told_all_at_once() -> None:
    made = [row for row in rows() if (row["id"], row["candidate"]) != ("c1", 3)]
    made += [{"id": "c0", "candidate": 0, "caption": "again"}, {"id": "c2", "caption": "no number"}]
    with pytest.raises(UserErrors) as caught:
        secap_runs(made, similarity="words")
    text = str(caught.value)
    assert len(caught.value.errors) == 3
    assert "row 24: candidate 0 of 'c0'" in text and "row 25" in text
    assert "'c1': 7 candidates, not 8" in text and "--num 8" in text


def test_not_all_samples_can_be_dropped() -> None:
    with pytest.raises(UserError, match="cannot be dropped"):
        secap_runs(rows(), similarity="words", samples=8, dropped=8)
    with pytest.raises(UserError, match="encoder, words"):
        secap_runs(rows(), similarity="letters")  # type: ignore[arg-type]


def test_published_outputs_become_caption_files(tmp_path: Path, capsys, monkeypatch) -> None:
    script = importlib.util.spec_from_file_location(
        "secap_outputs", Path(__file__).parents[2] / "scripts/secap_outputs.py"
    )
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    outputs, manifest, out = tmp_path / "outputs.txt", tmp_path / "m.jsonl", tmp_path / "out"
    blocks = (
        "file: a.wav\norigin: 快乐\nresult: 很高兴\nresult2: \n",
        "file: b.wav\nresult: 悲伤\nresult2: 难过\n",
    )
    outputs.write_text("\n".join(blocks))
    write_manifest(manifest, [Utterance(f"x-{name}", ".", f"wav/{name}.flac", "secap") for name in "ba"])
    monkeypatch.setattr(sys, "argv", ["secap_outputs.py", str(outputs), str(manifest), "--out", str(out)])
    assert module.main() == 0
    rows = [[row["caption"] for row in read_jsonl(out / f"{n}.jsonl")] for n in (1, 2)]
    assert rows == [["悲伤", "很高兴"], ["难过", ""]]
    said = {"a": "他很高兴", "b": "他高兴", "c": "她悲伤"}
    clips = [Utterance(n, ".", f"{n}.flac", "secap", speaker=n, captions=[said[n]]) for n in "abc"]
    assert module.constants([*clips, replace(clips[0], id="d", speaker="d")]) == dict.fromkeys(
        "abcd", "他很高兴"
    )
    write_manifest(manifest, [Utterance("x-c", ".", "wav/c.flac", "secap")])
    assert module.main() == 2 and "no outputs for 1 clips, such as x-c" in capsys.readouterr().err
    outputs.write_text("nothing")
    assert module.main() == 2 and "no blocks" in capsys.readouterr().err
