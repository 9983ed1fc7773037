"""Zero-shot scores: label maps, chosen labels, per corpus and together, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.evaluation import evaluate as module
from aligncap.evaluation.scoring import (
    Scored,
    System,
    evaluate_captions,
    score_rows,
    subset_cells,
    together,
)
from aligncap.evaluation.zero_shot import ZeroShotConfig, read_corpora, run_zeroshot
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl

# (clip, what it is, what the caption says)
SEA = [
    ("s0", "angry", "He sounds angry."),
    ("s1", "angry", "He sounds sad."),
    ("s2", "sad", "He sounds sad."),
    ("s3", "neutral", "He sounds calm."),
    ("s4", "fearful", "He sounds fearful."),
    ("s5", "fearful", "A man is speaking."),
]
LAKE = [
    ("l0", "angry", "She sounds angry."),
    ("l1", "calm", "She sounds calm."),
    ("l2", "calm", "She sounds happy."),
    ("l3", "happy", "She sounds disgusted."),
]


def utterances(corpus: str, clips: list[tuple[str, str, str]], **more: Any) -> list[Utterance]:
    return [
        Utterance(
            name,
            ".",
            f"{name}.wav",
            corpus,
            speaker=f"{corpus}-{number % 2}",
            emotion=emotion,
            captions=[f"The speaker sounds {emotion}."],
            **more,
        )
        for number, (name, emotion, _) in enumerate(clips)
    ]


def rows(clips: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [{"id": name, "audio": f"{name}.wav", "caption": caption} for name, _, caption in clips]


def scored(name: str, clips: list[tuple[str, str, str]], label_map: dict[str, str] | None = None) -> Scored:
    return score_rows(rows(clips), utterances(name, clips), label_map=label_map)


def values(cells: dict[str, Any]) -> dict[str, float]:
    return {name: cell["value"] for name, cell in cells.items()}


def own(*seeds: Scored) -> dict[str, float]:
    return values(System("x", seeds).cells)


def test_each_corpus_is_read_through_its_own_label_map() -> None:
    plain, mapped, lake = (
        own(one)
        for one in (scored("sea", SEA), scored("sea", SEA, {"calm": "neutral"}), scored("lake", LAKE))
    )
    # recalls: angry 1/2, sad 1/1, neutral 0 or (calm counted as neutral) 1/1, fearful 1/2
    assert plain["emotion_uar"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert mapped["emotion_uar"] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)
    assert mapped["emotion_accuracy"] == pytest.approx(4 / 6)
    assert lake["emotion_uar"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_chosen_labels_are_scored_on_their_clips_alone_and_other_emotions_said_are_wrong() -> None:
    labels = ["angry", "sad", "neutral"]
    sea = [scored("sea", SEA)]
    found = own(*sea) | values(subset_cells([[sea]], labels))
    # without fearful; the calm caption of the neutral clip names a label outside of the choice
    assert found["subset_emotion_uar"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["subset_emotion_accuracy"] == pytest.approx(2 / 4)
    assert found["subset_emotion_none_share"] == 0  # "A man is speaking" is a fearful clip's
    assert found["emotion_none_share"] == pytest.approx(1 / 6)


def test_together_is_pooled_by_clips_and_averaged_over_corpora() -> None:
    corpora = [[scored("sea", SEA, {"calm": "neutral"})], [scored("lake", LAKE)]]
    scores = together(corpora, ["angry", "happy"])
    pooled, mean = (values(scores[way]) for way in ("pooled", "mean_over_corpora"))
    # angry 2/3, sad 1/1, neutral 1/1, fearful 1/2, calm 1/2, happy 0/1: sea's map leaves lake's calm alone
    assert pooled["emotion_uar"] == pytest.approx((2 / 3 + 1 + 1 + 0.5 + 0.5 + 0) / 6)
    assert pooled["emotion_accuracy"] == pytest.approx(6 / 10)
    assert mean["emotion_uar"] == pytest.approx(((0.5 + 1 + 1 + 0.5) / 4 + (1 + 0.5 + 0) / 3) / 2)
    assert mean["emotion_accuracy"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    # chosen: sea has angry (1 of 2), lake angry (1 of 1) and happy (0 of 1)
    assert pooled["subset_emotion_uar"] == pytest.approx((2 / 3 + 0) / 2)
    assert mean["subset_emotion_uar"] == pytest.approx((1 / 2 + (1 + 0) / 2) / 2)
    # "He sounds sad." is said of 2 clips of 10, of 2 of sea's 6; no caption of lake's 4 is said twice
    assert pooled["top_caption_share"] == pytest.approx(2 / 10)
    assert mean["top_caption_share"] == pytest.approx((2 / 6 + 1 / 4) / 2)
    alone = [own(*seeds) for seeds in corpora]
    for name in ("cider_d", "meteor", "rouge_l", "mean_length"):
        assert pooled[name] == pytest.approx((6 * alone[0][name] + 4 * alone[1][name]) / 10), name
        assert mean[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2), name
    assert "distinct_1" not in pooled and alone[0]["distinct_1"] > 0
    for cells in scores.values():
        assert cells["emotion_uar"]["low"] <= cells["emotion_uar"]["value"] <= cells["emotion_uar"]["high"]


def test_seeds_are_averaged_with_their_spread() -> None:
    all_right = [(name, emotion, f"He sounds {emotion}.") for name, emotion, _ in SEA]
    two = [scored("sea", SEA), scored("sea", all_right)]
    scores = together([two, [scored("lake", LAKE)] * 2], ["angry"])
    cell = System("x", two).cells["emotion_uar"]
    assert (cell["value"], cell["runs"]) == (pytest.approx((0.5 + 1) / 2), 2)
    assert cell["spread"] == pytest.approx(np.std([0.5, 1], ddof=1))
    mean = scores["mean_over_corpora"]["emotion_uar"]
    assert mean["value"] == pytest.approx(((0.5 + 0.5) / 2 + (1 + 0.5) / 2) / 2) and mean["runs"] == 2
    assert scores["pooled"]["subset_emotion_uar"]["value"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Manifests sea.jsonl, lake.jsonl and train.jsonl of a third corpus, sounds, and caption files."""
    time = np.arange(16_000) / 16_000
    for name, clips, rate, language in (("sea", SEA, 16_000, "pl"), ("lake", LAKE, 8_000, "en")):
        for clip, *_ in clips:
            soundfile.write(tmp_path / f"{clip}.wav", 0.1 * np.sign(np.sin(2 * np.pi * 200 * time)), rate)
        made = utterances(name, clips, language=language, sha256=("a" if name == "sea" else "b") * 64)
        write_manifest(tmp_path / f"{name}.jsonl", made)
        (tmp_path / f"{name}-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(clips)))
    known = Utterance("t", ".", "t.wav", "land", speaker="land-1", emotion="sad", cues={"level_dbfs": -30.0})
    write_manifest(tmp_path / "train.jsonl", [known])
    return tmp_path


def given(folder: Path, *names: str) -> dict[str, Any]:
    return {
        "manifest": [str(folder / f"{name}.jsonl") for name in names],
        "out": str(folder / "out"),
        "captions": [f"{name}={folder / f'{name}-0.jsonl'}" for name in names],
        "trained_on": [str(folder / "train.jsonl")],
    }


def zero_shot(**options: Any) -> None:
    assert run_zeroshot(ZeroShotConfig(**options)) == 0


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a report was asked for; the report itself has tests of its own."""
    asked: list[Path] = []
    monkeypatch.setattr(module, "write_report", lambda out, *_, **__: asked.append(out) or out)
    return asked


def test_files_say_scores_conditions_and_what_was_mapped(there: Path, reports: list[Path]) -> None:
    zero_shot(**given(there, "sea", "lake"), label_map=["sea:calm=neutral"], labels=["angry", "happy"])
    found = json.loads((there / "out" / "zero_shot.json").read_text())
    sea, lake = found["corpora"]["sea"], found["corpora"]["lake"]
    assert sea["emotion_uar"]["value"] == pytest.approx(0.75) and sea["label_map"] == {"calm": "neutral"}
    assert sea["chance"] == 1 / 4 and sea["subset"] == ["angry"] and lake["subset"] == ["angry", "happy"]
    assert (sea["clips"], sea["speakers"], sea["genders"]) == (6, 2, {"unknown": 6})
    assert (sea["rates"], lake["rates"]) == ({"16000": 6}, {"8000": 4})
    assert (sea["new_languages"], lake["new_languages"]) == (["pl"], [])
    # a square wave of amplitude 0.1 is at -20 dBFS, measured since the manifest has no cues
    assert sea["level_dbfs"] == pytest.approx(-20, abs=0.2) and sea["level_clips"] == 6
    assert sea["level_difference_db"] == pytest.approx(10, abs=0.2)
    assert lake["foreign_emotions"] == {"disgusted": 0.25} and sea["foreign_emotions"] == {}
    assert found["together"]["pooled"]["emotion_accuracy"]["value"] == pytest.approx(6 / 10)
    assert "weighing the same" in found["weights"]["mean_over_corpora"]
    assert found["training"]["corpora"] == ["land"] and found["training"]["corpora_without_hash"] == ["land"]
    text = (there / "out" / "zero_shot.md").read_text()
    assert "calm counts as neutral" in text and "0.750 [" in text and "| mean over corpora |" in text
    record = json.loads((there / "out" / "run.json").read_text())
    assert record["verb"] == "zeroshot" and str(there / "sea-0.jsonl") in record["data"]
    assert reports == [there / "out" / "sea", there / "out" / "lake"]


def test_a_corpus_that_was_heard_is_refused_before_anything_is_written(there: Path) -> None:
    options = given(there, "sea", "lake") | {"trained_on": [str(there / "lake.jsonl")]}
    with pytest.raises(UserErrors, match='corpus "lake"') as caught:
        zero_shot(**options)
    assert len(caught.value.errors) == 3  # corpus, speakers, clips
    assert not (there / "out").exists()
    with pytest.raises(UserError, match="nothing tells what the model was trained on"):
        zero_shot(**given(there, "sea") | {"trained_on": []})


def test_answers_to_instructions_are_no_references_here_either(there: Path) -> None:
    clips = read_manifest(there / "sea.jsonl")
    for u in clips:
        u.instructions = ["Which emotion?"] * len(u.captions)
    write_manifest(there / "sea.jsonl", clips)
    with pytest.raises(UserError, match="sea.jsonl: .*answers to instructions"):
        zero_shot(**given(there, "sea"))
    assert not (there / "out").exists()


def test_options_that_contradict_each_other_come_all_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        ZeroShotConfig(manifest=["m"], out="o", name="T=2", condition=["deaf"], limit=0)
    text = str(caught.value)
    for part in ("limit=0: must be at least 1", "condition=deaf: choose among wrong", "a name without ="):
        assert part in text
    assert "nothing tells what the model was trained on" in text and "leave out --captions" in text


def test_errors_of_maps_and_labels_come_all_at_once(there: Path) -> None:
    maps = [
        ("sae:calm", "neutral"),
        ("sea:clam", "neutral"),
        ("lake:calm", "happy"),
        ("sea:calm", "happy"),
    ]
    with pytest.raises(UserErrors) as caught:
        read_corpora([there / "sea.jsonl", there / "lake.jsonl", there / "sea.jsonl"], maps, ["hapy"])
    text = str(caught.value)
    for part in (
        '"sea" was named before',
        '--label_map sae:…: no such corpus, nearest is "sea"',
        'unknown label "clam", nearest is "calm"',
        'lake has clips labelled "calm" itself',
        'sea:calm=happy: sea has no clip labelled "happy"',
        '--labels: no clip is labelled "hapy", nearest is "happy"',
    ):
        assert part in text
    with pytest.raises(UserErrors, match="write CORPUS:SAID=LABEL"):
        read_corpora([there / "sea.jsonl"], [("calm", "neutral")])


def test_captions_that_do_not_fit_the_corpora_are_refused(there: Path, reports: list[Path]) -> None:
    options = given(there, "sea", "lake")
    files = options["captions"]
    for captions, part in (
        (files[:1], "lake: no captions"),
        ([*files, files[0].replace("sea=", "see=")], 'no such corpus, nearest is "sea"'),
        ([*files, files[0]], "different numbers of seeds .sea: 2, lake: 1."),
        ([files[0], files[0].replace("sea=", "lake=")], "a caption without references"),
    ):
        with pytest.raises(UserErrors, match=part):
            zero_shot(**options | {"captions": captions})


def test_a_limit_takes_labels_evenly_and_compares_with_the_whole_corpus(
    there: Path, reports: list[Path]
) -> None:
    (limited,) = read_corpora([there / "sea.jsonl"], limit=4)
    assert sorted(str(u.emotion) for u in limited.utterances) == ["angry", "fearful", "neutral", "sad"]
    assert len(limited.whole) == 6
    zero_shot(**given(there, "sea"), limit=4)
    found = json.loads((there / "out" / "zero_shot.json").read_text())
    assert found["limit"] == 4 and found["corpora"]["sea"]["signature"]["clips"] == 4
    assert found["together"] is None


def test_a_model_captions_each_corpus_once(
    there: Path, reports: list[Path], tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligncap.data.provenance import manifests_provenance, write_provenance
    from aligncap.evaluation import zero_shot as zero_shot_captions
    from aligncap.models.checkpoints import save_whole

    model, processor = tiny
    folder = there / "model"
    processor.save_pretrained(folder)
    save_whole(model, folder)
    captioned = {"model": [str(folder)], "manifest": [str(there / "sea.jsonl")], "out": str(there / "out")}
    with pytest.raises(UserErrors, match="--trained.on"):
        zero_shot(**captioned)
    write_provenance(folder, manifests_provenance([there / "train.jsonl"]))
    options = {"dtype": "float32", "device": "cpu", "max_new_tokens": 4}
    zero_shot(**captioned, **options)
    path = there / "out" / "captions" / "sea-0.jsonl"
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [name for name, *_ in SEA]
    loads: list[Any] = []
    real = zero_shot_captions.Captioner.from_pretrained
    monkeypatch.setattr(
        zero_shot_captions.Captioner, "from_pretrained", lambda *a, **k: loads.append(a) or real(*a, **k)
    )
    zero_shot(**captioned, **options)
    assert not loads
    zero_shot(**captioned, **options | {"max_new_tokens": 5})
    assert len(loads) == 1
    path.with_suffix(".made_of.json").unlink()
    with pytest.raises(UserError, match="nothing tells which model wrote it"):
        zero_shot(**captioned, **options)


def test_what_is_heard_instead_is_captioned_and_told_beside_the_scores(
    there: Path, reports: list[Path], tiny: Any
) -> None:
    from aligncap.data.provenance import manifests_provenance, write_provenance
    from aligncap.models.checkpoints import save_whole

    model, processor = tiny
    processor.save_pretrained(there / "model")
    save_whole(model, there / "model")
    write_provenance(there / "model", manifests_provenance([there / "train.jsonl"]))
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 4}
    zero_shot(
        model=[str(there / "model")],
        manifest=[str(there / "sea.jsonl"), str(there / "lake.jsonl")],
        out=str(there / "out"),
        condition=["wrong", "silence"],
        **options,
    )
    for name in ("sea", "lake"):
        found = read_jsonl(there / "out" / "captions" / f"{name}-0-wrong.jsonl")
        assert all(row["condition"] == "wrong" and row["heard"] != row["id"] for row in found)
        told = json.loads((there / "out" / "zero_shot.json").read_text())["corpora"][name]["listening"]
        assert set(told["conditions"]) == {"wrong", "silence"}
        gain = told["conditions"]["silence"]["emotion_uar"]
        assert gain["gain"]["value"] == pytest.approx(gain["right"]["value"] - gain["heard"]["value"])
        assert told["verdict"][0] in (there / "out" / "zero_shot.md").read_text()
    with pytest.raises(UserError, match="--condition captions with the model itself"):
        zero_shot(**given(there, "sea"), condition=["wrong"])


def test_a_broken_clip_is_named_instead_of_left_out(there: Path, reports: list[Path], tiny: Any) -> None:
    from aligncap.data.provenance import manifests_provenance, write_provenance
    from aligncap.models.checkpoints import save_whole

    model, processor = tiny
    processor.save_pretrained(there / "model")
    save_whole(model, there / "model")
    write_provenance(there / "model", manifests_provenance([there / "train.jsonl"]))
    (there / "s1.wav").write_bytes(b"no sound")
    with pytest.raises(UserErrors, match="s1.wav"):
        zero_shot(
            model=[str(there / "model")],
            manifest=[str(there / "sea.jsonl")],
            out=str(there / "out"),
            dtype="float32",
            max_new_tokens=2,
        )


@pytest.mark.real
def test_real_captions_score_as_in_an_evaluation_and_are_reported(tmp_path: Path) -> None:
    run = Path(__file__).resolve().parents[2] / "runs" / "ravdess"
    train, test, other = (run / "data" / f"{name}.jsonl" for name in ("train", "test", "nemo"))
    captions = run / "captions.jsonl"
    if not all(path.is_file() for path in (train, test, other, captions)):
        pytest.skip("no run on RAVDESS at hand: bash scripts/quickstart.sh --corpus ravdess FOLDER")
    options: dict[str, Any] = {"captions": [f"ravdess={captions}"]}
    options |= {"manifest": [str(test)], "out": str(tmp_path)}
    with pytest.raises(UserErrors, match='corpus "ravdess"'):
        zero_shot(trained_on=[str(train)], **options)
    # as if it had been trained on the other corpus
    zero_shot(trained_on=[str(other)], audio="link", **options)
    found = json.loads((tmp_path / "zero_shot.json").read_text())["corpora"]["ravdess"]
    plain = evaluate_captions(read_jsonl(captions), read_manifest(test))
    for name in ("emotion_uar", "cider_d", "wrong_claim_share"):
        assert found[name]["value"] == pytest.approx(plain[name]["value"]), name
    assert found["level_difference_db"] < -5 and found["new_languages"] == ["en"]
    assert (tmp_path / "ravdess" / "report.html").is_file()
