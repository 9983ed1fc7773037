"""METEOR 1.5 and SPICE: the sums that Java gives, what is missing, and pycocoevalcap's own figures."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import captions as coco
from aligncap.evaluation.metrics.captions import (
    caption_statistics,
    meteor_counts,
    meteor_scores,
    spice,
)
from aligncap.evaluation.metrics.tokens import tokenize
from aligncap.evaluation.scoring import evaluate_captions
from aligncap.utils.errors import UserError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "metrics_200.json"
CAPTIONS = [("he", "sounds", "sad"), ("a", "man")]
REFERENCES = [[("he", "is", "sad")], [("a", "man"), ("someone",)]]
# lines of METEOR 1.5 to those two: two of three words matched, of them one a function word; all matched
LINES = ["3 3 2 2 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 2 2 2", "2 2 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for pycocoevalcap, and a `java` that answers with the file `answer` of its folder."""
    for part in ("meteor", "spice/lib"):
        (tmp_path / part).mkdir(parents=True)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "given = sys.stdin.read()\n"
        "answer = pathlib.Path('answer').read_text()\n"
        "pathlib.Path('asked').write_text(given)\n"
        "if '-out' in sys.argv: pathlib.Path(sys.argv[sys.argv.index('-out') + 1]).write_text(answer)\n"
        "elif answer == 'fail': sys.exit('OutOfMemoryError')\n"
        "else: print(answer)\n"
    )
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.setattr(coco, "_package", lambda: tmp_path)
    return tmp_path


def test_meteor_by_hand(package: Path) -> None:
    (package / "meteor" / "answer").write_text("\n".join(LINES))
    counts = meteor_counts(CAPTIONS, REFERENCES)
    assert (package / "meteor" / "asked").read_text().splitlines() == [
        "SCORE ||| he is sad ||| he sounds sad",
        "SCORE ||| a man ||| someone ||| a man",
    ]
    # one content and one function word of one and two: 0.75 + 0.25 of 0.75 + 2 * 0.25 each way; 2 chunks of 2
    first = (1.0 / 1.25) * (1 - 0.6 * (2 / 2) ** 0.2)
    np.testing.assert_allclose(meteor_scores(counts), [first, 1.0])
    whole = (2.0 / 2.25) * (1 - 0.6 * (2 / 4) ** 0.2)  # of both: a caption matched whole adds no chunk
    assert meteor_scores(counts.sum(axis=0)) == pytest.approx(whole)
    assert meteor_scores(np.zeros(23)) == 0.0


def test_it_is_a_labelled_score_beside_nltks(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "version", lambda name: "1.2")
    (package / "meteor" / "answer").write_text("\n".join(LINES))
    made = [
        Utterance(f"c{i}", ".", "x.wav", "made", speaker=f"s{i}", captions=[" ".join(t) for t in texts])
        for i, texts in enumerate(REFERENCES)
    ]
    rows = [{"id": f"c{i}", "caption": " ".join(words)} for i, words in enumerate(CAPTIONS)]
    plain = evaluate_captions(rows, made, wordnet="none", similarity="none")
    assert plain["meteor_1_5"]["value"] is None and "meteor_1_5" not in plain["signature"]
    result = evaluate_captions(rows, made, wordnet="none", similarity="none", coco=["meteor_1_5"])
    assert result["meteor_1_5"]["value"] == pytest.approx((2.0 / 2.25) * (1 - 0.6 * 0.5**0.2))
    assert result["meteor"] == plain["meteor"] and result["spice"]["value"] is None
    assert "pycocoevalcap 1.2" in result["signature"]["meteor_1_5"]


def test_spice_reads_the_f_score_of_each_clip(package: Path) -> None:
    for name in coco._CORENLP:
        (package / "spice" / "lib" / name).touch()
    scores = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.25), (0, float("nan")))]
    (package / "spice" / "answer").write_text(json.dumps(scores))
    assert spice(CAPTIONS, REFERENCES).tolist() == [0.0, 0.25]


def test_what_is_missing_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(words) for words in CAPTIONS]
    references = [[" ".join(words) for words in targets] for targets in REFERENCES]
    with pytest.raises(UserError, match="stanford-corenlp-3.6.0.jar.*get_stanford_models.*leave SPICE out"):
        caption_statistics(["spice"], texts, references, wordnet=False)
    with pytest.raises(UserError, match="no score 'blue'.*meteor_1_5, spice"):
        caption_statistics(["blue"], texts, references, wordnet=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no `java`"):
        meteor_counts(CAPTIONS, REFERENCES)
    monkeypatch.undo()
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"aligncap\[coco\]"):
        meteor_counts(CAPTIONS, REFERENCES)


def test_a_java_that_fails_or_answers_short_is_told(package: Path) -> None:
    (package / "meteor" / "answer").write_text("fail")
    with pytest.raises(UserError, match="Java failed on meteor-1.5.jar .OutOfMemoryError"):
        meteor_counts(CAPTIONS, REFERENCES)
    (package / "meteor" / "answer").write_text(LINES[0])
    with pytest.raises(UserError, match="1 lines to 2 captions"):
        meteor_counts(CAPTIONS, REFERENCES)


@pytest.mark.slow
def test_meteor_equals_pycocoevalcaps_for_the_set_and_for_every_clip() -> None:
    if find_spec("pycocoevalcap") is None:
        pytest.skip('pycocoevalcap is not installed: pip install "aligncap[coco]"')
    if shutil.which("java") is None:
        pytest.skip("there is no java")
    from pycocoevalcap.meteor.meteor import Meteor

    clips = json.loads(FIXTURE.read_text(encoding="utf-8"))["clips"]
    captions = [tokenize(clip["caption"]) for clip in clips]
    references = [[tokenize(text) for text in clip["references"]] for clip in clips]
    whole, each = Meteor().compute_score(
        {i: [" ".join(t) for t in texts] for i, texts in enumerate(references)},
        {i: [" ".join(words)] for i, words in enumerate(captions)},
    )
    counts = meteor_counts(captions, references)
    assert meteor_scores(counts.sum(axis=0)) == pytest.approx(whole, abs=1e-6)
    np.testing.assert_allclose(meteor_scores(counts), each, atol=1e-6, rtol=0)
