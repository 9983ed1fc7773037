"""METEOR: NLTK's numbers, faster; with WordNet where there is one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aligncap.evaluation.metrics import ngram as wordnet
from aligncap.evaluation.metrics.ngram import meteor
from aligncap.utils.errors import UserError


class _NoSynonyms:
    def synsets(self, word: str) -> list:
        return []


def _texts() -> tuple[list[list[str]], list[list[list[str]]]]:
    rng = random.Random(4)
    words = (
        "he she is sad sadly happy anger wrath talk talking speaking speaks quick fast voice the a".split()
    )
    sentence = lambda: [rng.choice(words) for _ in range(rng.randint(1, 12))]  # noqa: E731
    return [sentence() for _ in range(60)], [[sentence() for _ in range(3)] for _ in range(60)]


def test_exact_and_stem_equal_nltk() -> None:
    from nltk.translate.meteor_score import meteor_score

    captions, references = _texts()
    expected = [meteor_score(r, c, wordnet=_NoSynonyms()) for c, r in zip(captions, references, strict=True)]
    assert meteor(captions, references, wordnet=False).tolist() == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    # 2 of 3 and 2 of 4 words match in one chunk: P = 2/3, R = 1/2, penalty 0.5 (1/2)^3.
    score = meteor([["he", "speaks", "up"]], [[["he", "speaking", "very", "low"]]], wordnet=False)[0]
    assert score == pytest.approx((1 - 0.5 / 8) * (2 / 3 * 1 / 2) / (0.9 * 2 / 3 + 0.1 * 1 / 2))


def test_empty_caption_scores_nothing() -> None:
    assert meteor([[]], [[["sad"]]], wordnet=False).tolist() == [0.0]


@pytest.mark.skipif(
    wordnet.find_wordnet() is None, reason="no WordNet: install wordnet-base and wordnet-sense-index"
)
def test_with_synonyms_equals_nltk_and_finds_wrath_in_anger() -> None:
    from nltk.translate.meteor_score import meteor_score

    captions, references = _texts()
    expected = [meteor_score(r, c) for c, r in zip(captions, references, strict=True)]
    assert meteor(captions, references, wordnet=True).tolist() == pytest.approx(expected, abs=1e-12)
    assert meteor([["wrath"]], [[["anger"]]], wordnet=True).tolist() == [0.5]
    assert meteor([["wrath"]], [[["anger"]]], wordnet=False).tolist() == [0.0]
    assert meteor([["talk"]], [[["speaking"]]], wordnet=True).tolist() == [0.5]  # through the stem "speak"


def test_lexnames_is_the_table_of_45_files() -> None:
    lines = wordnet.lexnames().splitlines()
    assert len(lines) == 45
    assert lines[0] == "00\tadj.all\t3" and lines[12] == "12\tnoun.feeling\t1"
    assert lines[37] == "37\tverb.emotion\t2" and lines[44] == "44\tadj.ppl\t3"


def test_a_partial_database_is_refused_by_name_of_its_missing_files(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text("x")
    with pytest.raises(UserError, match="index.sense.*wordnet-sense-index"):
        wordnet.build_wordnet(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_building_copies_files_and_writes_lexnames(tmp_path: Path) -> None:
    for name in wordnet._FILES:
        (tmp_path / name).write_text(name)
    out = wordnet.build_wordnet(tmp_path, tmp_path / "out")
    built = out / "corpora" / "wordnet"
    assert (built / "data.adj").read_text() == "data.adj" and not (built / "data.adj").is_symlink()
    assert (built / "lexnames").read_text() == wordnet.lexnames()
    assert [p.name for p in built.parent.iterdir()] == ["wordnet"]


def test_insisting_without_wordnet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "find_wordnet", lambda: None)
    with pytest.raises(UserError, match="wordnet-base"):
        meteor([["a"]], [[["a"]]], wordnet=True)
