"""The tokenizer under all metrics."""

from __future__ import annotations

import pytest

from aligncap.evaluation.metrics.ngram import tokenize


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
