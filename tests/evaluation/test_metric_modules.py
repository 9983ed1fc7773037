"""The metrics as evaluate.Metric modules: by path without a network, and by import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aligncap.evaluation.metrics as metrics
from aligncap.utils.errors import UserError

FOLDER = Path(metrics.__file__).parent
PREDICTIONS = ["He sounds sad.", "She is very happy, speaking fast."]
REFERENCES = [
    ["He seems sad and slow.", "He sounds sad."],
    ["She sounds happy.", "She speaks fast and is happy."],
]

SCRIPT = """
import json, socket, sys
def refuse(*a, **k): raise AssertionError("network touched")
socket.socket.connect = refuse
import evaluate
folder, predictions, references = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
result = {}
for name in ("bleu", "meteor", "rouge_l", "cider_d"):
    metric = evaluate.load(f"{folder}/captions.py", name)
    metric.add_batch(predictions=predictions[:1], references=references[:1])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    result.update(metric.compute())
print("RESULT" + json.dumps(result))
"""


def test_all_load_by_path_offline_and_agree_with_the_imported_classes(tmp_path: Path) -> None:
    from aligncap.evaluation.metrics.captions import CaptionMetric
    from aligncap.evaluation.metrics.ngram import find_wordnet

    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_MODULES_CACHE": str(tmp_path / "m"),
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(FOLDER), json.dumps(PREDICTIONS), json.dumps(REFERENCES)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    by_path = json.loads(run.stdout.split("RESULT")[1])
    find_wordnet.cache_clear()  # another test may have fetched it since this process first looked
    by_import: dict[str, float | str] = {}
    for name in ("bleu", "meteor", "rouge_l", "cider_d"):
        metric = CaptionMetric(name, cache_dir=str(tmp_path))
        by_import.update(metric.compute(predictions=PREDICTIONS, references=REFERENCES))
    assert by_path == by_import
    whole = CaptionMetric(cache_dir=str(tmp_path)).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert whole == by_import
    assert set(by_path) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "variant", "rouge_l", "cider_d"}
    assert by_path["bleu_1"] == pytest.approx(7 / 9)  # of 9 words "very" and "speaking" are in no reference


def test_scores_of_single_clips_on_request(tmp_path: Path) -> None:
    from aligncap.evaluation.metrics.captions import CaptionMetric

    metric = CaptionMetric("rouge_l", cache_dir=str(tmp_path))
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, per_clip=True)
    assert result["per_clip"]["rouge_l"][0] == pytest.approx(1.0)
    assert result["rouge_l"] == pytest.approx(sum(result["per_clip"]["rouge_l"]) / 2)
    with pytest.raises(UserError, match="no score 'rouge'"):
        CaptionMetric("rouge", cache_dir=str(tmp_path)).compute(
            predictions=PREDICTIONS, references=REFERENCES
        )


def test_an_evaluation_scores_with_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from aligncap.data.manifest import Utterance
    from aligncap.evaluation.metrics.captions import CaptionMetric
    from aligncap.evaluation.scoring import evaluate_captions

    clips = [Utterance(str(i), ".", "x.wav", "made", captions=texts) for i, texts in enumerate(REFERENCES)]
    rows = [{"id": str(i), "caption": text} for i, text in enumerate(PREDICTIONS)]
    asked: list[str] = []
    compute = CaptionMetric._compute

    def counted(self, *args, **options):
        asked.append(self.config_name)
        return compute(self, *args, **options)

    monkeypatch.setattr(CaptionMetric, "_compute", counted)
    result = evaluate_captions(rows, clips, wordnet="none")
    assert asked == ["default"]
    assert result["bleu_1"]["value"] == pytest.approx(7 / 9)
