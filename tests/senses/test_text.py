"""The sense of text: planted words are learnt, by every way of training; GoEmotions' table; bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aligncap.cli import main
from aligncap.senses.captions import scores_of_captions
from aligncap.senses.goemotions import seven_of
from aligncap.senses.measures import measured
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.senses.sense import load_sense, read_scores
from aligncap.senses.text import Stage, TextConfig, last_layers, load_backbone, stage_of
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.f1 import f1_sums, macro_f1, weighted_f1

PLANTED = {"happy": "hooray", "sad": "alas", "angry": "grr"}
OTHERS = "the door was open and rain fell on some old stones while we went home".split()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *OTHERS, *PLANTED.values()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A tiny DistilBERT with random weights."""
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"dim": 24, "hidden_dim": 48, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 32}
    without = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "initializer_range": 0.3}
    DistilBertModel(DistilBertConfig(vocab_size=24, **sizes, **without)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A tiny LLM with random weights."""
    from tiny import make_llm

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    make_llm(24).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_files(folder: Path, shuffled: bool = False) -> list[str]:
    """Sentences with a word of their emotion at a random place; the flags that name the three files."""
    rng = np.random.default_rng(0)
    words = []
    for flag, part, count in (("manifest", "train", 240), ("dev", "dev", 30), ("test", "test", 60)):
        rows = []
        for i in range(count):
            emotion = list(PLANTED)[i % 3]
            said = rng.choice(OTHERS, int(rng.integers(1, 5))).tolist()
            said.insert(int(rng.integers(0, len(said) + 1)), PLANTED[emotion])
            told = str(rng.choice(list(PLANTED))) if shuffled else emotion
            rows.append({"id": f"{part}{i}", "transcript": " ".join(said), "emotion": told})
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words += [f"--{flag}", str(path)]
    return words


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    return make_files(tmp_path_factory.mktemp("sentences"))


def fit(files: list[str], out: Path, model: str, *words: str) -> dict:
    command = ["senses", "text", *files, "--model", model, "--out", str(out), "--batch_size", "10", *words]
    assert main([*command, "--device", "cpu"]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(files, bert, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("text")
    fit(files, out, bert, "--lora_rank", "0", "--stages", "head:1:1e-3", "last-1:1:1e-3", "all:5:3e-3")
    return out


def test_a_planted_word_is_learnt_in_three_stages(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["test_macro_f1"]["value"] > 0.95 < metrics["test_weighted_f1"]["value"]
    assert metrics["test_macro_f1"]["units"] == "clips (speakers unknown)"
    assert not (trained / "checkpoints").exists()
    rows, scores = read_scores(trained / "scores" / "test.jsonl")
    assert len(rows) == 60 and [r["label"] for r in rows[:3]] == list(PLANTED)


def test_a_planted_word_is_learnt_by_adapters_and_by_a_linear_head(files, llama, tmp_path):
    lora = ("--lora_rank", "4", "--stages", "all:5:1e-2", "--checks", "1")
    assert fit(files, tmp_path / "lora", llama, *lora)["test_macro_f1"]["value"] > 0.95
    linear = ("--linear", "--class_weights", "--layers", "1")
    assert fit(files, tmp_path / "linear", llama, *linear)["test_macro_f1"]["value"] > 0.7
    sense = load_sense(tmp_path / "linear")
    assert (
        sense.width == 32
        and json.loads((tmp_path / "linear" / "config.json").read_text())["num_hidden_layers"] == 1
    )
    moments = read_moments(files[5])
    told = read_scores(tmp_path / "linear" / "scores" / "test.jsonl")[1]
    assert np.allclose(sense.read(moments).scores, told, atol=1e-5)  # saved is loaded


def test_nothing_is_found_where_labels_are_shuffled(llama, tmp_path):
    words = make_files(tmp_path, shuffled=True)
    value = fit(words, tmp_path / "out", llama, "--linear")["test_uar"]["value"]
    assert 0.1 < value < 0.56


def test_a_batch_is_read_as_single_texts_are(trained, files):
    sense = load_sense(trained)
    moments = [*read_moments(files[5])[:9], Moment("silent"), Moment("word", text="rain")]
    together = sense.read(moments)
    for place, moment in enumerate(moments):
        alone = sense.read([moment])
        assert np.allclose(together.scores[place], alone.scores[0], atol=1e-5, equal_nan=True)
        assert torch.allclose(together.features[place], alone.features[0], atol=1e-5)
    assert np.isnan(together.scores[9]).all() and together.features[9].shape == (0, sense.width)
    assert together.features[10].shape == (1, 24)


def test_seeds_decide(files, bert, tmp_path):
    found = []
    for name, seed in (("a", "0"), ("b", "1")):
        words = (
            "--lora_rank",
            "0",
            "--stages",
            "all:1:1e-3",
            "--checks",
            "1",
            "--seed",
            seed,
            "--limit",
            "40",
        )
        fit(files, tmp_path / name, bert, *words)
        found.append(read_scores(tmp_path / name / "scores" / "test.jsonl")[1])
    assert not np.allclose(found[0], found[1])


def test_a_stopped_run_goes_on_with_its_stages_and_ends_as_one_of_its_seed_does(
    files, bert, tmp_path, monkeypatch
):
    import aligncap.senses.text as text

    words = ("--lora_rank", "0", "--stages", "head:1:1e-3", "all:1:1e-3", "--checks", "1", "--limit", "40")
    fit(files, tmp_path / "whole", bert, *words)
    stages, inner = [], text._train_stage

    def dies(config, stage, place, *rest):
        stages.append(place.name)
        if len(stages) == 2:
            raise KeyboardInterrupt
        inner(config, stage, place, *rest)

    monkeypatch.setattr(text, "_train_stage", dies)
    command = [
        "senses",
        "text",
        *files,
        "--model",
        bert,
        "--out",
        str(tmp_path / "broken"),
        "--batch_size",
        "10",
    ]
    assert main([*command, *words, "--device", "cpu"]) == 130
    fit(files, tmp_path / "broken", bert, *words)
    assert stages == ["stage-0", "stage-1", "stage-1"]  # the first was not trained again
    one, two = (read_scores(tmp_path / name / "scores" / "test.jsonl")[1] for name in ("whole", "broken"))
    assert np.allclose(one, two, atol=1e-5)


def test_stages_are_read_and_wrong_ones_told(bert):
    assert stage_of("head:2:1e-3") == Stage(0, 2, 1e-3) and stage_of("all:0.5:1e-5").last is None
    with pytest.raises(UserErrors) as told:
        TextConfig(manifest="m", dev="d", out="o", stages=["tail:1:1e-3", "all:1", "all:0:1", "last-x:1:1"])
    assert len(told.value.errors) == 4
    model, _ = load_backbone(bert, 2, torch.float32)
    assert len(last_layers(model, 2)) == 2
    with pytest.raises(UserError, match="last-3: the model has 2 layers"):
        last_layers(model, 3)
    with pytest.raises(UserError, match="layers=4: .* has 3"):
        load_backbone(bert, 4, torch.float32)


def test_a_damaged_sense_is_told(trained, tmp_path):
    (tmp_path / "sense.json").write_text((trained / "sense.json").read_text())
    with pytest.raises(UserError):
        load_sense(tmp_path)


# ---- GoEmotions


def test_the_table_has_every_label_of_goemotions_once():
    table = seven_of()
    assert len(table) == 28 and set(table.values()) == set(SEVEN)
    for emotion, labels in {
        "happy": "joy love admiration optimism relief pride",
        "angry": "anger annoyance disapproval",
        "sad": "sadness disappointment grief remorse",
        "fearful": "fear nervousness",
        "surprised": "surprise realization confusion curiosity",
        "disgusted": "disgust",
        "neutral": "neutral",
    }.items():
        assert {table[label] for label in labels.split()} == {emotion}


def make_goemotions(folder: Path, train: str) -> Path:
    (folder / "labels.txt").write_text("joy\nlove\nanger\nneutral\n")
    for part, lines in (("train", train), ("dev", "so it goes\t3\te\n"), ("test", "again\t3\ta\nhm\t3\tf\n")):
        (folder / f"{part}.tsv").write_text(lines, encoding="utf-8")
    return folder


def test_conflicting_labels_are_dropped_and_counted(tmp_path, capsys):
    train = "I love\tit\t0,1\ta\nboth\t0,2\tb\nGrr “now”\t2\tc\n"  # a tab in the first text
    folder = make_goemotions(tmp_path, train)
    assert main(["senses", "goemotions", str(folder), "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "a", "transcript": "I love\tit", "emotion": "happy"},
        {"id": "c", "transcript": "Grr “now”", "emotion": "angry"},
    ]
    # the id of the first comment comes again in test
    assert [m.id for m in read_moments(tmp_path / "out" / "test.jsonl", ["text"])] == ["f"]


def test_lines_that_are_none_of_goemotions_are_told(tmp_path):
    folder = make_goemotions(tmp_path, "no tabs\nok\t1\ta\nnumber\t9\tb\nword\tx\tc\n")
    assert main(["senses", "goemotions", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out" / "train.jsonl").exists()
    assert main(["senses", "goemotions", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2


# ---- captions, and F1


def test_the_captioners_confidence_is_folded_into_seven(tmp_path):
    rows = [
        {"id": "a", "probabilities": {"calm": 0.2, "neutral": 0.2, "sad": 0.4, "bored": 0.2}},
        {"id": "b", "emotion": None, "confidence": None},
        {"id": "c", "probabilities": {"bored": 1.0}},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moments = [Moment(name) for name in "cab"]
    scores = scores_of_captions(path, moments)
    assert scores[1].tolist() == pytest.approx([0.5, 0, 0.5, 0, 0, 0, 0])
    assert np.isnan(scores[[0, 2]]).all()
    with pytest.raises(UserErrors, match="d: not captioned"):
        scores_of_captions(path, [Moment("d")])
    path.write_text('{"id": "a", "emotion": "sad", "confidence": 0.9}\n')
    with pytest.raises(UserError, match="caption with --confidence"):
        scores_of_captions(path, [Moment("a")])


def test_the_command_writes_a_file_of_scores(manifest, tmp_path, capsys):
    path = tmp_path / "captions.jsonl"
    shares = [{"calm": 0.9, "angry": 0.1}, {"calm": 0.2, "angry": 0.8}]
    rows = [{"id": f"clip{i}", "probabilities": shares[i % 2]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores.jsonl"
    assert main(["senses", "captions", str(path), "--manifest", str(manifest), "--out", str(out)]) == 0
    assert "1.000" in capsys.readouterr().out
    assert read_scores(out)[1][0].tolist() == pytest.approx([0.9, 0, 0, 0.1, 0, 0, 0])


def test_f1_is_that_of_scikit_learn_and_no_score_is_wrong():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    truth = rng.choice(SEVEN[:4], 200).tolist()
    said = [t if rng.random() < 0.5 else str(rng.choice(SEVEN[:5])) for t in truth]
    sums = f1_sums(truth, said, SEVEN).sum(0)
    words = {"labels": list(SEVEN[:4]), "zero_division": 0}
    assert float(macro_f1(sums)) == pytest.approx(f1_score(truth, said, average="macro", **words))
    assert float(weighted_f1(sums)) == pytest.approx(f1_score(truth, said, average="weighted", **words))
    moments = [Moment(str(i), "sad", speaker=f"s{i % 2}") for i in range(4)]
    scores = np.full((4, 7), np.nan)
    scores[:3] = np.eye(7)[2]
    row = measured(moments, scores)
    assert row["accuracy"]["value"] == 0.75 and row["units"].startswith("2 speakers; fewer than 12")
