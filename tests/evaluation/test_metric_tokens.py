"""The tokenizer under all metrics."""

from __future__ import annotations

import sys

import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation import evaluate
from aligncap.evaluation.evaluate import EvaluateConfig
from aligncap.evaluation.metrics import tokens
from aligncap.evaluation.metrics.captions import caption_statistics
from aligncap.evaluation.metrics.tokens import tokenize
from aligncap.evaluation.scoring import score
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.options import parse


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("He sounds SAD, very sad!", "he sounds sad very sad"),
        ("She isn't angry; she's calm.", "she is n't angry she 's calm"),
        ("She isn’t angry", "she is n't angry"),
        ("a high-pitched -- shaky - voice", "a high-pitched shaky voice"),
        ("They'll can't won't", "they 'll ca n't wo n't"),
        ("(quietly) \"no\" 'yes' [sic]", "quietly no yes sic"),
        ("0.5 of 1,440 clips", "0.5 of 1,440 clips"),
        ("声音低沉，语速缓慢。", "声 音 低 沉 语 速 缓 慢"),
        ("她sad了", "她 sad 了"),
        ("Głos jest smutny", "głos jest smutny"),
        ("\uff28\uff45 is ok", "he is ok"),
        ("... ?!", ""),
        ("", ""),
    ],
)
def test_splits_lower_cases_and_drops_punctuation(caption: str, words: str) -> None:
    assert " ".join(tokenize(caption)) == words


def test_a_clitic_in_the_middle_of_a_word_is_left_alone() -> None:
    assert tokenize("antique isn'twice") == ("antique", "isn", "twice")


def test_chinese_words_are_jiebas() -> None:
    pytest.importorskip("rjieba", reason="aligncap[zh] is not installed")
    assert tokenize("声音低沉，语速缓慢。", "words") == ("声音", "低沉", "语速", "缓慢")
    assert tokenize("她sad了，isn't 2.5倍。", "words") == ("她", "sad", "了", "is", "n't", "2.5", "倍")
    assert tokenize("He isn't angry", "words") == tokenize("He isn't angry")
    assert tokenize("声音低沉") == ("声", "音", "低", "沉")  # the other way is not remembered


def test_scores_by_words_are_as_worked_by_hand() -> None:
    """他 声音 低沉, 她 声音 低沉: 2 of 3 words match, 1 of 2 pairs; 4 of 5 characters, 3 of 4 pairs."""
    pytest.importorskip("rjieba", reason="aligncap[zh] is not installed")
    by: dict[str, dict[str, float]] = {}
    for way in ("characters", "words"):
        found = caption_statistics(["bleu", "rouge_l"], ["他声音低沉"], [["她声音低沉"]], False, way)
        by[way] = {name: float(statistic.value) for name, statistic in found.items()}
    assert by["words"]["bleu_1"] == pytest.approx(2 / 3) and by["characters"]["bleu_1"] == pytest.approx(
        4 / 5
    )
    assert by["words"]["bleu_2"] == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    assert by["characters"]["bleu_2"] == pytest.approx((4 / 5 * 3 / 4) ** 0.5)
    assert by["words"]["rouge_l"] == pytest.approx(2 / 3) and by["characters"]["rouge_l"] == pytest.approx(
        0.8
    )


def test_the_signature_says_which_and_lengths_are_of_the_same() -> None:
    pytest.importorskip("rjieba", reason="aligncap[zh] is not installed")
    clips = [
        Utterance(f"a{i}", "x", f"a{i}.wav", f"s{i}", language="zh", emotion="sad", captions=["声音低沉。"])
        for i in range(2)
    ]
    options = {"similarity": "none", "wordnet": "none"}
    words, characters = (
        score(clips, ["声音低沉"] * 2, **options, chinese=c) for c in ("words", "characters")
    )
    assert (words.values["mean_length"], characters.values["mean_length"]) == (2, 4)
    assert (words.values["distinct_1"], characters.values["distinct_1"]) == (2 / 4, 4 / 8)
    assert "by word (jieba's, by rjieba 0." in words.counted["tokenizer"]
    assert characters.counted["tokenizer"].endswith("Han and kana by character")


def test_without_the_segmenter_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    tokens._segmenter.cache_clear()
    with pytest.raises(UserError, match=r"needs rjieba; pip install 'aligncap\[zh\]', or choose characters"):
        tokenize("没有分词器的句子", "words")
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    with pytest.raises(UserErrors, match=r"chinese=words: needs rjieba; pip install 'aligncap\[zh\]'"):
        parse(EvaluateConfig, ["c.jsonl", "--references", "m.jsonl", "--out", "r", "--chinese", "words"])
