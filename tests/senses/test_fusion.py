"""Late fusion: the weights that were planted, the sense that knows, and nothing where nothing is."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from aligncap.cli import main
from aligncap.senses.fusion import Fusion, choose, fuse, fuse_all, grid, grid_f1, learn, load_fusion
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.sense import write_scores
from aligncap.utils.errors import UserError


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def make(strengths, count=400, seed=0):
    """Labels, and scores of senses: noise plus `strength` (a number, or one a label) for the right label."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 7, count)
    logits = rng.normal(size=(len(strengths), count, 7))
    for k, strength in enumerate(strengths):
        logits[k, np.arange(count), truth] += np.broadcast_to(strength, 7)[truth]
    return truth, softmax(logits)


def by_name(scores):
    return dict(zip(("text", "voice", "face", "caption"), scores))


def labels_of(truth):
    return [SEVEN[k] for k in truth]


def macro(truth, scores):
    return f1_score(truth, scores.argmax(-1), average="macro", labels=np.unique(truth))


def test_three_senses_have_1326_choices_with_a_sum_of_1():
    choices = grid(3, 0.02)
    assert len(choices) == 1326 == len({tuple(row) for row in choices})
    assert np.allclose(choices.sum(1), 1) and choices.min() == 0


def test_f1_of_a_few_rows_by_hand():
    # two moments happy, one sad; the first sense names the happy ones, the second the sad one and a happy one
    truth = np.array([1, 1, 2])
    one, two = np.full((3, 7), 0.01), np.full((3, 7), 0.01)
    one[[0, 1, 2], [1, 1, 1]] = 0.9
    two[[0, 1, 2], [1, 2, 2]] = 0.8
    macro, weighted = grid_f1(np.stack([one, two]), truth, np.array([[1, 0], [0, 1], [0.5, 0.5]]))
    # first alone: happy 2·2/(2+3) = .8, sad 0; second alone: happy 2·1/(2+1) = 2/3, sad 2·1/(1+2) = 2/3;
    # together the first's .9 outweighs the second's .8
    assert macro == pytest.approx([0.4, 2 / 3, 0.4])
    assert weighted == pytest.approx([0.8 * 2 / 3, 2 / 3, 0.8 * 2 / 3])


def test_the_plain_loop_gives_what_the_vectorised_one_gives(monkeypatch):
    truth, scores = make([0.8, 0.5, 0.2], 60)
    truth[truth == 3] = 4  # a label without moments
    choices = grid(3, 0.1)
    found = grid_f1(scores, truth, choices)
    present = np.unique(truth)
    for weights, macro, weighted in zip(choices, *found):
        said = sum(w * s for w, s in zip(weights, scores)).argmax(1)
        assert macro == pytest.approx(f1_score(truth, said, average="macro", labels=present))
        assert weighted == pytest.approx(f1_score(truth, said, average="weighted", labels=present))
    monkeypatch.setattr("aligncap.senses.fusion._BLOCK", 1000)  # a few choices at a time
    assert np.array_equal(grid_f1(scores, truth, choices), found)


def test_planted_weights_are_found():
    rng = np.random.default_rng(1)
    scores, planted = rng.dirichlet(np.full(7, 0.5), (3, 1000)), np.array([0.2, 0.5, 0.3])
    truth = np.einsum("k,kne->ne", planted, scores).argmax(1)
    fusion = learn(by_name(scores), labels_of(truth), 0.02, "macro_f1")
    found = list(fusion.of(["text", "voice", "face"]).values())
    assert found == pytest.approx(planted, abs=0.03)


def test_of_two_noise_senses_and_a_good_one_the_good_one_counts():
    for place in range(3):
        strengths = [2.5 if k == place else 0.0 for k in range(3)]
        fusion = learn(by_name((made := make(strengths, 300))[1]), labels_of(made[0]), 0.02, "macro_f1")
        weights = list(fusion.of(["text", "voice", "face"]).values())
        assert weights[place] >= 0.6, (place, weights)
        truth, scores = make(strengths, 2000, seed=9)
        fused = fuse_all(by_name(scores), fusion)
        assert macro(truth, fused) >= macro(truth, scores[place]) - 0.02


def test_senses_that_each_see_a_part_are_better_together():
    parts = [[3, 3, 3, 0, 0, 0, 0], [0, 0, 0, 3, 3, 0, 0], [0, 0, 0, 0, 0, 3, 3]]
    truth, scores = make(parts)
    fusion = learn(by_name(scores), labels_of(truth), 0.02, "macro_f1")
    truth, scores = make(parts, 2000, seed=5)
    alone = max(macro(truth, own) for own in scores)
    assert macro(truth, fuse_all(by_name(scores), fusion)) > alone + 0.15


@pytest.mark.parametrize("metric", ["macro_f1", "weighted_f1"])
@pytest.mark.parametrize("seed", range(4))
def test_on_dev_fusion_is_never_worse_than_its_best_sense(metric, seed):
    truth, scores = make([0.5, 0.3, 0.0], 50, seed)
    fusion = learn(by_name(scores), labels_of(truth), 0.1, metric)
    value = {"macro_f1": 0, "weighted_f1": 1}[metric]
    fused = grid_f1(fuse_all(by_name(scores), fusion)[None], truth, np.ones((1, 1)))[value][0]
    single = max(grid_f1(own[None], truth, np.ones((1, 1)))[value][0] for own in scores)
    assert fused >= single - 1e-12


def test_of_equally_good_choices_the_middle_one_is_taken():
    weights = grid(2, 0.25)  # 0, .25, .5, .75, 1
    assert choose(weights, np.array([0.5, 0.9, 0.9, 0.9, 0.1])) == 2


def test_each_set_of_senses_has_weights_of_its_own_and_few_moments_share_out_those_of_all():
    truth, scores = make([2.0, 1.0, 0.0], 100)
    scores[2, 30:] = np.nan  # a face in 30 moments
    fusion = learn(by_name(scores), labels_of(truth), 0.1, "macro_f1")
    assert set(fusion.weights) == {
        "text+voice+face", "text+voice", "text+face", "voice+face", "text", "voice", "face"
    }  # fmt: skip
    scores[2, 25:] = np.nan
    scores[0, :6] = np.nan  # all three in 19 moments
    with pytest.raises(UserError, match="only 19 labelled dev moments have all of text, voice, face; 20 are"):
        learn(by_name(scores), labels_of(truth), 0.1, "macro_f1")
    few = Fusion(["text", "voice", "face"], {"text+voice+face": {"text": 0.6, "voice": 0.2, "face": 0.2}})
    assert few.of(["face", "text"]) == pytest.approx({"text": 0.75, "face": 0.25})
    none = Fusion(["text", "voice", "face"], {"text+voice+face": {"text": 1.0, "voice": 0.0, "face": 0.0}})
    assert none.of(["voice", "face"]) == {"voice": 0.5, "face": 0.5}


def test_what_is_missing_is_left_out_of_one_moment_and_of_many():
    fusion = Fusion(
        ["text", "voice"],
        {"text+voice": {"text": 0.25, "voice": 0.75}, "text": {"text": 1}, "voice": {"voice": 1}},
    )
    text, voice = np.eye(7)[1], np.eye(7)[2]
    assert fuse({"text": text, "voice": voice}, fusion).tolist() == [0, 0.25, 0.75, 0, 0, 0, 0]
    assert np.array_equal(fuse({"text": text, "voice": None}, fusion), text)
    assert np.array_equal(fuse({"text": text, "voice": [np.nan] * 7}, fusion), text)
    assert np.isnan(fuse({"text": None, "voice": None}, fusion)).all() and np.isnan(fuse({}, fusion)).all()
    rows = {"text": np.stack([text, np.full(7, np.nan)]), "voice": np.stack([voice, voice])}
    assert np.array_equal(fuse_all(rows, fusion), [fuse({"text": text, "voice": voice}, fusion), voice])
    with pytest.raises(UserError, match="smell: the fusion knows text, voice"):
        fuse({"smell": text}, fusion)


def write(folder, part, strengths, seed, absent=0):
    truth, scores = make(strengths, 140, seed)
    scores[-1, : absent or 0] = np.nan
    moments = [Moment(f"{part}{i}", SEVEN[k], f"s{i % 14}") for i, k in enumerate(truth)]
    for name, own in by_name(scores).items():
        write_scores(folder / f"{name}-{part}.jsonl", moments, own)
    return moments


def words(folder, part, names=("text", "voice", "face")):
    return [f"{name}={folder / f'{name}-{part}.jsonl'}" for name in names]


def test_the_command_writes_weights_measures_and_pictures(tmp_path, capsys):
    write(tmp_path, "dev", [1.5, 1.0, 0.0], 0)
    write(tmp_path, "test", [1.5, 1.0, 0.0], 1, absent=20)
    out = tmp_path / "out"
    beside = ["--beside", f"again={tmp_path / 'text-test.jsonl'}"]
    options = [
        "--dev",
        *words(tmp_path, "dev"),
        "--test",
        *words(tmp_path, "test"),
        *beside,
        "--out",
        str(out),
    ]
    assert main(["senses", "fuse", *options]) == 0
    shown = capsys.readouterr().out
    assert "fused" in shown and "14 speakers" in shown and "best by itself on dev: text" in shown
    fusion, metrics = load_fusion(out), json.loads((out / "metrics.json").read_text())
    assert fusion.measured_on == "test" and set(fusion.measured) == {"text", "voice", "face"}
    assert fusion.measured["face"]["moments"] == 120  # where there is a face
    sad = fusion.measured["text"]["by_emotion"]["sad"]
    assert 0 < sad["recall"]["low"] < sad["recall"]["value"] < 1 and sad["precision"]["value"] > 0
    assert metrics["systems"]["again"]["macro_f1"] == metrics["systems"]["text"]["macro_f1"]
    assert metrics["dev"]["fused"]["macro_f1"]["value"] >= metrics["dev"]["text"]["macro_f1"]["value"]
    assert metrics["differences"]["fused − text"]["macro_f1"]["p"] is not None
    files = {"fusion.json", "metrics.json", "run.json", "scores.jsonl", "confusion.png", "weights.png"}
    assert files == {path.name for path in out.iterdir()}


def test_two_senses_are_drawn_as_a_line_and_four_not_at_all(tmp_path):
    write(tmp_path, "dev", [1.5, 1.0, 0.0, 0.5], 0)
    for names, drawn in ((("text", "voice"), True), (("text", "voice", "face", "caption"), False)):
        out = tmp_path / f"out{len(names)}"
        options = ["--dev", *words(tmp_path, "dev", names), "--out", str(out), "--step", "0.1"]
        assert main(["senses", "fuse", *options]) == 0
        assert (out / "weights.png").is_file() == drawn and load_fusion(out).measured_on == "dev"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dev", "text=a"], "dev: two senses or more"),
        (["--dev", "text=a", "text=b"], "each of another name"),
        (["--dev", "text=a", "voice=b", "--test", "text=c"], "test: the same senses as dev"),
        (["--dev", "text=a", "voice=b", "--step", "0.03"], "must divide 1"),
        (["--dev", *(f"s{k}=a" for k in range(6))], "more than 100,000 choices"),
        (["--dev", "text", "voice=b"], "--dev text: write NAME=VALUE"),
        (["--dev", "text=a", "voice=b", "--beside", "c=d"], "beside: needs --test"),
        (["--dev", "text=gone", "voice=lost"], "gone: no such file of scores.*lost: no such file of scores"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(options, told, tmp_path, capsys):
    import re

    assert main(["senses", "fuse", *options, "--out", str(tmp_path / "out")]) == 2
    assert re.search(told, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_files_of_other_labels_do_not_belong_together(tmp_path, capsys):
    moments = write(tmp_path, "dev", [1.0, 1.0], 0)
    moments[3].label = "happy" if moments[3].label != "happy" else "sad"
    write_scores(tmp_path / "voice-dev.jsonl", moments, make([1.0], 140)[1][0])
    options = ["--dev", *words(tmp_path, "dev", ("text", "voice")), "--out", str(tmp_path / "out")]
    assert main(["senses", "fuse", *options]) == 2
    assert (
        "voice-dev.jsonl: 1 moments have another label than elsewhere, such as dev3"
        in capsys.readouterr().err
    )


def test_a_folder_without_a_fusion_is_told(tmp_path):
    with pytest.raises(UserError, match="fusion.json: no fusion of senses"):
        load_fusion(tmp_path)
