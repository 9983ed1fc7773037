"""What a report sets side by side: systems, each run with one or more seeds, and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.evaluation.evaluate import SCORES
from aligncap.evaluation.metrics.hallucination import GENERIC, VERY_GENERIC
from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "emotion_uar": "Emotion UAR",
    "emotion_accuracy": "Emotion accuracy",
    "emotion_none_share": "Captions without emotion word",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "similarity": "Similarity (sentence encoder)",
    "meteor_1_5": "METEOR 1.5 (Java)",
    "spice": "SPICE (Java)",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "top_caption_share": "Share of most frequent caption",
    "mean_length": "Mean length (tokens)",
    "emotion_set_precision": "Emotion words, set precision",
    "emotion_set_recall": "Emotion words, set recall",
    "emotion_set_f1": "Emotion words, set F1",
    "valence_flip_share": "Valence flips",
    "arousal_flip_share": "Arousal flips",
    "wrong_claim_share": "Wrong acoustic claims, share",
    "wrong_claims_per_caption": "Wrong acoustic claims a caption",
    "caption_with_wrong_claim_share": "Captions with a wrong acoustic claim",
    "claims_per_caption": "Acoustic claims a caption",
    "wrong_gender_share": "Wrong gender, where one is named",
    "generic_share": "Generic captions",
    "very_generic_share": "Very generic captions",
    "fit_share": "Other clips that a caption fits",
    "found_among_10": "Clip found among ten",
    "transcript_leak_share": "Captions that tell the words",
    "instruction_breach_share": "Captions that are no description",
    "rubric_score": "Rubric (0 to 10)",
}
LESS_IS_BETTER = {
    "emotion_none_share",
    "top_caption_share",
    "valence_flip_share",
    "arousal_flip_share",
    "instruction_breach_share",
    "wrong_claim_share",
    "wrong_claims_per_caption",
    "caption_with_wrong_claim_share",
    "wrong_gender_share",
    "generic_share",
    "very_generic_share",
    "fit_share",
    "transcript_leak_share",
}
NEITHER = {"mean_length", "claims_per_caption"}
# what the measures of hallucination mean, for the report
MEANINGS = {
    "similarity": "cosine of a sentence encoder's vectors of caption and references, mean over references; "
    'it feels a wrong emotion or gender, and hardly a wrong pitch, effort or rate, or a "not"',
    "emotion_set_precision": "of the emotions that captions name, the share that the label or half of the "
    "references name too, by sectors of emotion wheels, mean over wheels; over captions that name one",
    "emotion_set_recall": "of the emotions of label and references, the share that captions name",
    "valence_flip_share": "captions whose emotion words are pleasant where the clip's emotion is not, or the "
    "other way round; arousal flips: roused and unroused; over clips whose emotion has a side",
    "found_among_10": "probability that a caption's own clip fits it best of ten drawn from the set, by "
    "emotion, gender and acoustic claims; chance 0.1",
    "instruction_breach_share": "captions that do not describe how a voice sounds: questions, refusals, "
    "answers, lists, first person, scenes, fragments, repetition, another language",
    "wrong_claim_share": "of what captions claim about pitch, its movement, effort, rate and steadiness, the "
    "share that the measured audio does not bear out, against the speaker's own norm",
    "wrong_gender_share": "of captions that give the speaker a gender, the share that gives the wrong one",
    "generic_share": "captions whose emotion, gender and acoustic claims are as true of more than "
    f"{GENERIC:.0%} of the other clips; very generic: {VERY_GENERIC:.0%}",
    "fit_share": "mean share of the other clips of which a caption is as true; saying less raises it, and so "
    "does saying what is common; what is said of no clip lowers it, so read it beside the wrong claims",
    "transcript_leak_share": "captions that repeat content words of what is said in the clip",
    "rubric_score": "mean mark of the offline judge: emotion, acoustic claims, faithfulness, fluency "
    "by rules, specificity",
}


@dataclass(frozen=True)
class System:
    """One system under test.

    `results` are those of `evaluate_captions`, one a seed; `rows` are the captions of the first of them,
    which the report shows.
    """

    name: str
    results: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.results:
            raise UserError(f"system {self.name!r} has no result to report; score its captions first")
        sets = {
            (r["signature"]["clips"], r["signature"]["references"], tuple(r["details"]["labels"]))
            for r in self.results
        }
        if len(sets) > 1:
            raise UserError(
                f"system {self.name!r}: its runs were scored on different clips, so they have no mean"
            )


@dataclass(frozen=True)
class Yardstick:
    """What systems are held against, such as a linear probe: some metrics, with or without interval."""

    name: str
    values: Mapping[str, float | Mapping[str, float | None]]
    note: str = ""


Cell = dict[str, Any]


def pooled(results: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    """Mean over runs of each metric: {"name": {"value", "low", "high", "spread", "runs"}}.

    `low` and `high` are the means of the runs' own intervals (clips and speakers); `spread` is the standard
    deviation over runs (seeds), None for a single run.
    """
    cells: dict[str, Cell] = {}
    for name in SCORES:
        runs = [result[name] for result in results]
        cell: Cell = {}
        for key in ("value", "low", "high"):
            numbers = [run[key] for run in runs if run[key] is not None]
            cell[key] = float(np.mean(numbers)) if len(numbers) == len(runs) else None
        whole = len(runs) > 1 and cell["value"] is not None
        cell["spread"] = float(np.std([run["value"] for run in runs], ddof=1)) if whole else None
        cell["runs"] = len(runs)
        cells[name] = cell
    return cells


def baseline_cells(baseline: Yardstick) -> dict[str, Cell]:
    """The baseline's values in the form of `pooled`.

    Raises:
        UserError: a value is given for something that is no metric.
    """
    cells = {}
    for name, value in baseline.values.items():
        if name not in SCORES:
            raise UserError(f"baseline {baseline.name!r}: {name!r} is no metric, unlike {', '.join(SCORES)}")
        given = dict(value) if isinstance(value, Mapping) else {"value": value}
        cells[name] = {"low": None, "high": None, "spread": None, "runs": 1, **given}
    return cells


def figure(name: str, value: float | None) -> str:
    """A metric's value as printed: three decimals, two of CIDEr-D and the rubric, one of lengths."""
    if value is None:
        return "–"
    return (
        f"{value:.1f}"
        if name == "mean_length"
        else f"{value:.2f}"
        if name in ("cider_d", "rubric_score")
        else f"{value:.3f}"
    )


def interval(name: str, cell: Cell) -> str:
    """ "[0.66, 0.77]", or nothing."""
    if cell["low"] is None or cell["high"] is None:
        return ""
    return f"[{figure(name, cell['low'])}, {figure(name, cell['high'])}]"


def table(result: Mapping[str, Any] | Sequence[System], baselines: Sequence[Yardstick] = ()) -> Table:
    """A terminal table of one result of `evaluate_captions`, or of several systems side by side."""
    from rich.table import Table
    from rich.text import Text

    systems = [System("value", [result])] if isinstance(result, Mapping) else list(result)
    columns = [(s.name, pooled(s.results)) for s in systems] + [
        (y.name, baseline_cells(y)) for y in baselines
    ]
    signature = systems[0].results[0]["signature"]
    title = (
        f"{signature['clips']} clips, {signature['references']} references, {signature['speakers']} speakers"
    )
    sheet = Table(title=title, caption="95 % intervals; ± is over runs (seeds, or the draws of a protocol)")
    sheet.add_column("metric")
    for name, _ in columns:
        sheet.add_column(Text(name), justify="right")
    for metric, metric_title in TITLES.items():
        if all(cells.get(metric, {}).get("value") is None for _, cells in columns):
            continue
        line = [Text(metric_title)]
        for _, cells in columns:
            cell = cells.get(metric)
            text = Text("–" if cell is None else figure(metric, cell["value"]))
            if cell is not None and cell["spread"] is not None:
                text.append(f" ± {figure(metric, cell['spread'])}")
            if cell is not None and interval(metric, cell):
                text.append(f" {interval(metric, cell)}", style="dim")
            line.append(text)
        sheet.add_row(*line)
    return sheet
