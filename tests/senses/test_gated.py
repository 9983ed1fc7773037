"""Gated fusion: what each sense sees a part of is seen together, and noise beside the text does no harm."""

import json

import numpy as np
import pytest
import torch

from aligncap.cli import main
from aligncap.senses.gated import GateConfig, GatedFusion, batch_of, load_gated, read_gated, train_gated
from aligncap.senses.measures import macro_f1_of
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.score import key_of, open_features
from aligncap.senses.sense import read_scores
from aligncap.utils.errors import UserError

WIDTH = 8
FOUR = [1, 2, 3, 4]  # happy, sad, angry, fearful
TOLD = 0.6  # of the states of a sequence that show its label


def make(sees, count, seed):
    """Moments of four labels, and features of senses: `sees[name]` are the labels that a sense can tell.

    A label that it cannot tell looks as any other that it cannot.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice(FOUR, count)
    features = {}
    for place, (name, known) in enumerate(sees.items()):
        shapes = np.random.default_rng(place).normal(size=(8, WIDTH)) * 2
        rows = []
        for label in truth:
            steps = rng.integers(2, 6)
            shown = shapes[label if label in known else 0] * (rng.random((steps, 1)) < TOLD)
            rows.append(torch.from_numpy(rng.normal(size=(steps, WIDTH)) + shown).float())
        features[name] = rows
    return [Moment(f"m{i}", SEVEN[k], f"s{i % 6}") for i, k in enumerate(truth)], features


def config(tmp_path, **options):
    names = options.pop("names", ["text", "voice", "face"])
    given = {"size": 16, "epochs": 8, "learning_rate": 5e-3, "dropout": 0.1} | options
    return GateConfig(
        train=str(tmp_path / "train"),
        dev=str(tmp_path / "dev"),
        test=str(tmp_path / "test"),
        features=[f"{name}=x" for name in names],
        out="",
        **given,
    )


def fit(tmp_path, sees, count=240, **options):
    return train_gated(config(tmp_path, **options), make(sees, count, 1), make(sees, 120, 2))[0]


def only(features, *names):
    gone = {name: [row[:0] for row in rows] for name, rows in features.items()}
    return gone | {name: features[name] for name in names}


PARTS = {"text": [1], "voice": [2], "face": [3]}


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("gated"), PARTS)


def test_senses_that_each_see_a_part_are_better_together(parted):
    moments, features = make(PARTS, 300, 3)
    together = macro_f1_of(moments, read_gated(parted, features))
    alone = {name: macro_f1_of(moments, read_gated(parted, features, [name])) for name in PARTS}
    assert together > 0.85 and together > max(alone.values()) + 0.2, (together, alone)


def test_beside_noise_the_text_is_as_good_as_by_itself(tmp_path):
    noise = {"text": FOUR, "voice": [], "face": []}
    train, dev, (moments, features) = (
        make(noise, count, seed) for count, seed in ((480, 1), (120, 2), (400, 3))
    )
    settings = config(tmp_path)
    beside, _ = train_gated(settings, train, dev)
    by_itself, _ = train_gated(settings, (train[0], only(train[1], "text")), (dev[0], only(dev[1], "text")))
    score = macro_f1_of(moments, read_gated(beside, features))
    text = macro_f1_of(moments, read_gated(by_itself, only(features, "text")))
    assert text > 0.8 and score > text - 0.05, (score, text)


def test_masked_is_the_same_as_absent(parted):
    _, features = make(PARTS, 20, 3)
    masked = read_gated(parted, features, ["voice", "text"])
    assert np.allclose(masked, read_gated(parted, only(features, "voice", "text")), atol=1e-6)
    assert not np.allclose(masked, read_gated(parted, features), atol=1e-2)


def test_a_moment_without_anything_has_no_scores_and_one_without_text_has(parted):
    _, features = make(PARTS, 3, 3)
    features = {name: [rows[0], rows[1][:0], rows[2]] for name, rows in features.items()}
    features["text"][0] = features["text"][0][:0]
    scores = read_gated(parted, features)
    assert np.isnan(scores[1]).all() and np.allclose(scores[[0, 2]].sum(1), 1)


def test_a_batch_gives_what_single_moments_give(parted):
    _, features = make(PARTS, 12, 3)
    together = read_gated(parted, features)
    for i in range(12):
        single = read_gated(parted, {name: [rows[i]] for name, rows in features.items()})
        assert np.allclose(single[0], together[i], atol=1e-5)


def test_three_classes_leave_surprise_out_and_lambda_0_leaves_their_head_alone(tmp_path):
    from aligncap.senses.gated import VALENCE

    assert set(SEVEN) - set(VALENCE) == {"surprised"} and set(VALENCE.values()) == {0, 1, 2}
    before = GatedFusion({"text": WIDTH, "voice": WIDTH}, "text", 16).three.weight
    for weight, moved in ((0.3, True), (0.0, False)):
        sees = {"text": FOUR, "voice": FOUR}
        options = {"valence": weight, "epochs": 1, "learning_rate": 0.05, "names": ["text", "voice"]}
        model = fit(tmp_path, sees, 240, **options)
        _, three = model(*batch_of(make(sees, 200, 3)[1], range(200)))
        truth = torch.tensor([VALENCE[str(m.label)] for m in make(sees, 200, 3)[0]])
        assert ((three.argmax(1) == truth).float().mean() > 0.65) == moved
    assert before.shape == (3, 16)


def test_the_command_trains_saves_and_measures(tmp_path, capsys):
    folders = {name: tmp_path / "features" / name for name in PARTS}
    for part, count in (("train", 120), ("dev", 60), ("test", 60)):
        moments, features = make(PARTS, count, len(part))
        for i, m in enumerate(moments):
            m.text, m.id = f"{part} {i}", f"{part}-{i}"
        rows = [
            {"id": m.id, "transcript": m.text, "emotion": m.label, "speaker": f"{part}-{m.speaker}"}
            for m in moments
        ]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, folder in folders.items():
            store = open_features(folder, "text", "a sense")
            store.write({key_of(m, "text"): row.half() for m, row in zip(moments, features[name])})
    words = ["senses", "gate", "--out", str(tmp_path / "out"), "--size", "16", "--epochs", "4"]
    for part in ("train", "dev", "test"):
        words += [f"--{part}", str(tmp_path / f"{part}.jsonl")]
    words += [
        "--learning_rate",
        "5e-3",
        "--features",
        *(f"{name}={folder}" for name, folder in folders.items()),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "gated" in shown and "voice alone" in shown
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["log"]) == 4 and metrics["systems"]["gated"]["moments"] == 60
    features = {name: [row.half().float() for row in rows] for name, rows in make(PARTS, 60, 4)[1].items()}
    scores = read_gated(load_gated(tmp_path / "out"), features)
    assert np.allclose(read_scores(tmp_path / "out" / "scores-test.jsonl")[1], scores, atol=1e-5)
    new = [{"id": f"n{i}", "transcript": f"new {i}", "emotion": e} for i, e in enumerate(("sad", "happy"))]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    assert main(words) == 2
    assert capsys.readouterr().err.count("lacks 2 of 2 moments; run `senses score --features`") == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": ["text"]}, "two senses or more"),
        ({"names": ["text", "text"]}, "each of another name"),
        ({"trunk": "smell"}, "trunk=smell: none of the senses text, voice, face"),
        ({"size": 10}, "size=10: must be a multiple of 4"),
    ],
)
def test_mistakes_in_options_are_told(options, told, tmp_path):
    with pytest.raises(UserError, match=told):
        config(tmp_path, **options)


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match="no gated fusion"):
        load_gated(tmp_path)
