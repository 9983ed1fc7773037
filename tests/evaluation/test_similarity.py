"""Similarity by a sentence encoder: what is counted, where there is none, and what it can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, similarity
from aligncap.evaluation.metrics.similarity import ENCODER, Encoder, cosines, find_encoder, load_encoder
from aligncap.evaluation.scoring import differences, evaluate_captions, score_rows
from aligncap.utils.errors import UserError

AXES = ("happy", "sad", "loud", "voice")


def by_words(texts: Sequence[str]) -> np.ndarray:
    """A unit vector of which of AXES are said; of none of them, an axis of its own."""
    vectors = np.array([[*(word in text for word in AXES), 0.0] for text in texts], np.float32)
    vectors[~vectors.any(axis=1), -1] = 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


FAKE = Encoder("made of words", by_words)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "find_encoder", lambda: FAKE)


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "find_encoder", lambda: None)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a word-piece vocabulary."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "he",
        "she",
        "sounds",
        "is",
        "very",
        "sad",
        "happy",
        ".",
    ]
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def clips() -> list[Utterance]:
    references = [["A happy voice.", "Loud."], ["A sad voice.", "Sad."], ["Happy and loud.", "Nothing."]]
    return [
        Utterance(f"c{i}", ".", "x.wav", "made", speaker=f"s{i}", emotion="happy", captions=texts)
        for i, texts in enumerate(references)
    ]


def rows(*captions: str) -> list[dict[str, str]]:
    return [{"id": f"c{i}", "caption": text} for i, text in enumerate(captions)]


def test_cosine_is_averaged_over_references_and_an_empty_caption_scores_nothing() -> None:
    captions, targets = ["happy", "sad", ""], [["happy voice", "loud"], ["sad"], ["nothing"]]
    np.testing.assert_allclose(cosines(captions, targets, FAKE), [np.sqrt(0.5) / 2, 1.0, 0.0], atol=1e-6)


def test_it_is_a_score_with_interval_and_differences_where_the_encoder_is(fake: None) -> None:
    right, wrong = rows("happy voice", "sad voice", "happy and loud"), rows("sad", "happy", "sad")
    result = evaluate_captions(right, clips(), wordnet="none")
    cell = result["similarity"]
    assert cell["low"] <= cell["value"] <= cell["high"] and 0.4 < cell["value"] < 0.6
    assert "mean over references" in result["signature"]["similarity"]
    assert "made of words" in result["signature"]["similarity"]
    first, second = ([score_rows(said, clips(), wordnet="none")] for said in (wrong, right))
    gap = differences(first, second)["similarity"]
    other = evaluate_captions(wrong, clips(), wordnet="none")["similarity"]
    assert gap["value"] == pytest.approx(cell["value"] - other["value"])


def test_without_encoder_there_is_no_score_and_the_signature_says_what_to_do(none: None) -> None:
    result = evaluate_captions(rows("happy", "sad", "loud"), clips(), wordnet="none")
    assert "similarity" in SCORES and result["similarity"]["value"] is None
    assert f"aligncap models fetch {ENCODER}" in result["signature"]["similarity"]
    first, second = (
        [score_rows(rows(*said), clips(), wordnet="none")] for said in (["sad"] * 3, ["happy", "sad", "loud"])
    )
    assert "similarity" not in differences(first, second)
    with pytest.raises(UserError, match=f"aligncap models fetch {ENCODER}"):
        evaluate_captions(rows("happy", "sad", "loud"), clips(), wordnet="none", similarity="require")


def test_it_is_left_out_on_request(fake: None) -> None:
    result = evaluate_captions(rows("happy", "sad", "loud"), clips(), wordnet="none", similarity="none")
    assert result["similarity"]["value"] is None
    assert result["signature"]["similarity"] == "not counted: not asked for"
    with pytest.raises(UserError, match="similarity is 'yes'"):
        evaluate_captions(rows("happy", "sad", "loud"), clips(), similarity="yes")  # type: ignore[arg-type]


def test_texts_the_english_encoder_cannot_read_get_no_score(fake: None) -> None:
    chinese = rows("声音低沉", "sad", "loud")
    result = evaluate_captions(chinese, clips(), wordnet="none")
    assert result["similarity"]["value"] is None and "another script" in result["signature"]["similarity"]
    with pytest.raises(UserError, match="another script"):
        evaluate_captions(chinese, clips(), wordnet="none", similarity="require")
    assert not similarity.foreign(["Ça va, naïve façade: Łódź, 20 °C, “so”…"])


def test_a_folder_that_was_not_fetched_by_pinned_hash_is_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNCAP_HOME", str(tmp_path))
    assert find_encoder() is None
    (tmp_path / "models" / ENCODER).mkdir(parents=True)
    (tmp_path / "models" / ENCODER / "config.json").write_text("{}")
    assert find_encoder() is None


def test_batches_and_padding_do_not_change_a_vector(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder)
    assert encoder.name == "tiny-bert"
    texts = ["he sounds sad .", "she is very very very very happy .", "", "sad", "he sounds sad ."]
    together = encoder.encode(texts)
    load_encoder.cache_clear()
    alone = np.concatenate([load_encoder(tiny_encoder).encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert together[0] @ together[1] < 0.9999


@pytest.mark.real
def test_the_real_encoder_feels_the_emotion_and_not_a_negation() -> None:
    encoder = find_encoder()
    if encoder is None:
        pytest.skip(f"the sentence encoder is not at hand; run aligncap models fetch {ENCODER}")
    true = ["He sounds very angry, speaking loudly."]
    said = [
        "He sounds furious, in a loud voice.",
        "He sounds very sad, speaking loudly.",
        "It rains in Berlin.",
    ]
    close, other, unrelated = cosines(said, [true] * 3, encoder)
    assert close > other > unrelated
    negated = cosines(["He does not sound very angry, speaking loudly."], [true], encoder)[0]
    assert negated > other  # a limit that docs/metrics.md names
