"""How sure captions are: masses of emotions, calibration, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_model, save_model, voice

from aligncap import Captioner
from aligncap.cli import main
from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.inference.batch import CaptionConfig
from aligncap.inference.calibrate import fit
from aligncap.inference.confidence import (
    Calibration,
    Named,
    confidence_row,
    first_tokens,
    log_masses,
    named_emotion,
)
from aligncap.models.checkpoints import CALIBRATION
from aligncap.text.emotions import emotion_of, labels
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data

CLIPS = [voice(seconds, f0) for seconds, f0 in ((0.5, 110), (1.2, 180), (0.8, 240))]
ALIKE = dict.fromkeys(labels(), 1.0)


@pytest.fixture(scope="module")
def captioner():
    return Captioner(*make_model(seed=3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), max_response_tokens=6)


def token(captioner, text):
    ids = captioner.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 1, text
    return ids[0]


def scripted(captioner, rows):
    """What captions of these tokens name; a step's {id: p} gives tokens logits of log p."""
    tokenizer = captioner.processor.tokenizer
    own, named = first_tokens(tokenizer), []
    for row in rows:
        logits = torch.full((len(row), len(tokenizer)), -20.0)
        for step, (_, masses) in enumerate(row):
            for name, share in masses.items():
                logits[step, name] = math.log(share)
        written = [name for name, _ in row]
        found = named_emotion(written, log_masses(logits, own), own, tokenizer, Calibration())
        named.append((" ".join(tokenizer.decode(written).split()), found))
    return named


def test_a_token_that_begins_words_of_two_labels_belongs_to_none(captioner):
    tokens = first_tokens(captioner.processor.tokenizer)
    assert list(tokens) == labels()
    every = [name for own in tokens.values() for name in own]
    assert len(every) == len(set(every))
    assert token(captioner, " angry") in tokens["angry"] and token(captioner, " calm") in tokens["calm"]
    assert not {token(captioner, letter) for letter in "abdfhs"} & {*every}


def test_masses_are_summed_over_the_words_of_a_label():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.1, 0.3, 0.3], [0.6, 0.1, 0.1, 0.1, 0.1]]))
    masses = np.exp(log_masses(logits, {"sad": [1, 3], "calm": [4], "proud": []}))
    assert masses == pytest.approx(np.array([[0.5, 0.3, 0], [0.2, 0.1, 0]]))


def test_prior_and_temperature_by_hand():
    masses = np.log([[0.2, 0.6], [0.4, 0.4]])
    own = ["sad", "happy"]
    assert Calibration().probabilities(masses, own) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    prior = ALIKE | {"happy": 3.0}  # .2 / 1 and .6 / 3
    assert Calibration(1.0, prior).probabilities(masses, own)[0] == pytest.approx([0.5, 0.5])
    root = 3**0.5
    assert Calibration(2.0).probabilities(masses, own)[0] == pytest.approx(
        [1 / (1 + root), root / (1 + root)]
    )


def test_confidence_is_read_where_the_emotion_is_first_named(captioner):
    angry, calm, loud, no = (token(captioner, text) for text in (" angry", " calm", " loud", " not"))
    first = [
        (loud, {loud: 0.9, angry: 0.01, calm: 0.09}),
        (angry, {angry: 0.6, calm: 0.2, loud: 0.2}),
        (angry, {angry: 0.99, calm: 0.01}),
    ]
    denied = [(no, {no: 1.0}), (calm, {angry: 0.1, calm: 0.9}), (token(captioner, ","), {})]
    denied += [(calm, {calm: 0.5, angry: 0.5})]
    (_, one), (text, two), (_, three) = scripted(captioner, [first, denied, [(loud, {loud: 1.0})]])
    assert one.emotion == "angry" and one.confidence == one.probabilities["angry"] == pytest.approx(
        0.75, abs=1e-3
    )
    assert (
        text == "not calm, calm" and two.emotion == "calm" and two.confidence == pytest.approx(0.5, abs=1e-3)
    )
    assert three is None
    assert sum(one.probabilities.values()) == pytest.approx(1) and list(one.probabilities) == labels()


def test_a_word_that_begins_like_those_of_others_has_no_confidence(captioner):
    tokenizer = captioner.processor.tokenizer
    words = tokenizer(" furious", add_special_tokens=False)["input_ids"]
    assert len(words) > 1 and all(words[0] not in own for own in first_tokens(tokenizer).values())
    [(caption, named)] = scripted(captioner, [[(name, {name: 1.0}) for name in words]])
    assert caption == "furious" and named == Named("angry", None, None)
    assert confidence_row(caption, named, 0.0)["unsure"] is True


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 0}, {"num_beams": 2}]
)
def test_the_model_s_own_distribution_by_a_forward_pass(captioner, options):
    """Decoding is made to name an emotion; each clip's first step is worked out from its plain logits."""
    bias = {(token(captioner, " angry"),): 30.0, (token(captioner, " calm"),): 29.0}
    options = {"max_new_tokens": 4, "sequence_bias": bias} | options
    torch.manual_seed(0)
    said = captioner.captions_with_confidence(CLIPS, **options)
    torch.manual_seed(0)
    assert [caption for caption, _ in said] == captioner.generate(CLIPS, **options)
    tokens = first_tokens(captioner.processor.tokenizer)
    for clip, (caption, named) in zip(CLIPS, said, strict=True):
        with torch.no_grad():
            logits = captioner.model(**captioner.inputs([clip])).logits[0, -1]
        emotion = emotion_of(caption.split()[0])
        assert emotion in ("angry", "calm")
        masses = torch.stack([logits[own].logsumexp(0) for own in tokens.values()]).softmax(0)
        assert named is not None and named.emotion == emotion_of(caption)
        if named.emotion == emotion:
            assert named.confidence == pytest.approx(masses[labels().index(emotion)].item(), abs=1e-3)
    if "do_sample" not in options:
        alone = [captioner.captions_with_confidence([clip], **options)[0] for clip in CLIPS]
        assert [text for text, _ in alone] == [text for text, _ in said]
        sure = [named.confidence for _, named in said]
        assert [named.confidence for _, named in alone] == pytest.approx(sure, abs=1e-4)
        only = captioner.captions_with_confidence(CLIPS, emotions=["calm"], **options)
        assert all(list(named.probabilities) == ["calm"] for _, named in only if named)


def test_the_least_confidence_is_a_share():
    with pytest.raises(UserError, match="min_confidence"):
        CaptionConfig(model="m", files=["c.wav"], min_confidence=1.5)


def test_a_guess_below_the_least_confidence_is_left_open():
    sure = Named("sad", 0.8, {"sad": 0.8, "calm": 0.2})
    told = {"caption": "He sounds sad.", "emotion": "sad", "confidence": 0.8}
    assert confidence_row("He sounds sad.", sure) == confidence_row("He sounds sad.", sure, 0.8) == told
    row = confidence_row("He sounds sad.", sure, 0.81)
    open_ = load_data("templates.yaml")["unsure"]
    assert row == told | {"caption": open_, "unsure": True, "guess": "He sounds sad."}
    assert emotion_of(open_) is None
    nothing = {"caption": "He is loud.", "emotion": None, "confidence": None}
    assert confidence_row("He is loud.", None, 0.9) == nothing


# ------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "are needed"),
        ('{"temperature": 1}', "are needed"),
        ('{"temperature": 0, "prior": {}}', "above 0"),
        ('{"temperature": NaN, "prior": {}}', "above 0"),
        ('{"temperature": "2", "prior": {}}', "above 0"),
        ('{"temperature": 2, "prior": [1]}', "above 0"),
        ('{"temperature": 2, "prior": {"sad": 1}}', "missing or unknown: .*angry"),
        (json.dumps({"temperature": 2, "prior": ALIKE | {"odd": 1}}), "missing or unknown: odd"),
        (json.dumps({"temperature": 2, "prior": ALIKE | {"sad": -1}}), "above 0"),
    ],
)
def test_a_wrong_calibration_is_named_with_its_file(content, message, tmp_path):
    (tmp_path / CALIBRATION).write_text(content)
    with pytest.raises(UserError, match=f"{CALIBRATION}: .*{message}.*calibrate"):
        Calibration.read(tmp_path)


def test_it_is_read_from_the_model_s_folder(model, tmp_path):
    assert Captioner.from_pretrained(model, "cpu").calibration == Calibration()
    (tmp_path / CALIBRATION).write_text(json.dumps({"temperature": 2.5, "prior": ALIKE, "clips": 40}))
    assert Calibration.read(tmp_path) == Calibration(2.5, ALIKE)


def planted(rng, clips=4000, temperature=1.0, prior=None):
    """Log-shares as an overconfident or biased model would give them, the likeliest label named, by known
    probabilities right."""
    number = len(labels())
    logits = rng.normal(size=(clips, number)) * 1.5
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (chances.cumsum(1) < rng.random((clips, 1))).sum(1).clip(max=number - 1)
    scores = temperature * np.log(chances) + (0 if prior is None else np.log(prior))
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    named = scores.argmax(1)
    return scores, named, named == truth


def test_a_planted_temperature_is_found_and_a_prior_that_does_not_help_is_left():
    rng = np.random.default_rng(0)
    heard, named, right = planted(rng, temperature=3.0)
    wrong = np.log(rng.dirichlet(np.ones(len(labels())), size=50))
    found, losses = fit(heard, named, right, wrong)
    assert found.temperature == pytest.approx(3.0, rel=0.07) and not found.prior
    assert losses["loss"] < losses["loss_before"] - 0.2


def test_a_planted_prior_is_found():
    rng = np.random.default_rng(1)
    prior = rng.dirichlet(np.ones(len(labels()))) + 0.005
    prior /= prior.sum()
    heard, named, right = planted(rng, prior=prior)
    found, losses = fit(heard, named, right, np.log(np.tile(prior, (400, 1))))
    assert list(found.prior.values()) == pytest.approx(prior.tolist(), abs=1e-3)
    assert found.temperature == pytest.approx(1.0, rel=0.07) and losses["loss"] < losses["loss_before"]


def answers(monkeypatch, confidence=0.9):
    """A captioner that is always that sure of "angry"."""
    rest = (1 - confidence) / (len(labels()) - 1)
    shares = {label: confidence if label == "angry" else rest for label in labels()}

    def say(self, clips, *_, **__):
        sure = self.calibration.probabilities(np.log([*shares.values()]), labels()).tolist()
        own = dict(zip(labels(), sure, strict=True))
        return [("He sounds angry.", Named("angry", own["angry"], own))] * len(clips)

    monkeypatch.setattr(Captioner, "captions_with_confidence", say)


@pytest.fixture
def many(manifest, tmp_path):
    """Forty clips, half angry and half calm."""
    found = [replace(u, root=str(manifest.parent)) for u in read_manifest(manifest)]
    write_manifest(tmp_path / "dev.jsonl", [replace(u, id=f"{u.id}-{i}") for i in range(5) for u in found])
    return tmp_path / "dev.jsonl"


def test_calibrate_makes_confidence_as_often_right_as_it_says(many, tmp_path, monkeypatch, capsys):
    """Of half the clips "angry" is right: .9 becomes one half, by hand where 180 ** (1 / T) = 20."""
    answers(monkeypatch)
    folder = save_model(tmp_path / "model")
    assert main(["calibrate", "--model", str(folder), "--manifest", str(many)]) == 0
    kept = json.loads((folder / CALIBRATION).read_text())
    assert kept["clips"] == 40 and kept["temperature"] == pytest.approx(
        math.log(180) / math.log(20), abs=0.01
    )
    assert not kept["prior"] and kept["loss"] < kept["loss_before"]
    out = tmp_path / "out.jsonl"
    words = ["caption", "--model", str(folder), "--manifest", str(many), "--out", str(out)]
    assert main([*words, "--confidence"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["emotion"] for row in rows} == {"angry"} and rows[0]["confidence"] == pytest.approx(
        0.5, abs=0.01
    )
    assert main([*words, "--min_confidence", "0.95"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["unsure"] and row["guess"] == "He sounds angry." for row in rows)
    capsys.readouterr()
    assert main([*words[:-2], "--min_confidence", "0.95"]) == 0
    line = f"{load_data('templates.yaml')['unsure']} (angry {rows[0]['confidence']:.2f})"
    assert [text.split("\t")[1] for text in capsys.readouterr().out.splitlines()] == [line] * 40


def test_too_few_clips_and_too_few_emotions_are_errors(many, manifest, model, capsys):
    assert main(["calibrate", "--model", str(model), "--manifest", str(manifest)]) == 2
    assert "8 clips with a known emotion; 30 are needed" in capsys.readouterr().err
    assert main(["calibrate", "--model", str(model), "--manifest", str(many)]) == 2
    assert "names an emotion in 0 clips" in capsys.readouterr().err
    assert not (model / CALIBRATION).exists()


def test_rows_are_as_before_unless_asked(model, manifest, tmp_path):
    keys = []
    for words in ([], ["--confidence"]):
        out = tmp_path / "out.jsonl"
        assert (
            main(["caption", "--model", str(model), "--manifest", str(manifest), "--out", str(out), *words])
            == 0
        )
        keys.append({tuple(json.loads(line)) for line in out.read_text().splitlines()})
    assert keys == [{("id", "audio", "caption")}, {("id", "audio", "caption", "emotion", "confidence")}]
