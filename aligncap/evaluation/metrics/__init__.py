"""Caption metrics as `evaluate.Metric` modules.

Each file loads offline with `evaluate.load("<folder>/bleu.py")`, wherever it lies, while aligncap is
installed; or import the class. `compute(predictions=[...], references=[[...], ...])` takes plain captions.
"""

from __future__ import annotations

from typing import Any

USAGE = (
    "predictions: list of captions. references: list of lists of captions. per_clip: also each clip's score."
)


def FEATURES() -> dict[str, Any]:
    """Columns that every caption metric takes: one caption, some references."""
    import datasets

    return {
        "predictions": datasets.Value("string"),
        "references": datasets.Sequence(datasets.Value("string")),
    }
