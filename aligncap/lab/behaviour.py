"""Who wins: the share of answers that follow the audio, the text, or neither, with speaker intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from aligncap.lab.stimuli import Trial
from aligncap.lab.study import Study
from aligncap.utils.distributed import ALONE, Store
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.statistics import (
    Interval,
    Statistic,
    clusters_of,
    correct,
    intervals,
    mean,
    paired_differences,
)

WINNERS = ("audio", "text", "neither")


def answer_trials(study: Study, trials: Sequence[Trial], rows: Store) -> None:
    """Put of each trial the labels' log-probabilities into `rows`, {"scores": [emotions]}, by its key."""
    study.listen(t.clip for t in trials)
    by_key = {t.key: t for t in trials}

    def compute(keys: Sequence[str]) -> Row:
        found = study.answer(study.prefill([by_key[k] for k in keys]))
        return {k: {"scores": s} for k, s in zip(keys, found.tolist(), strict=True)}

    batches = [[t.key for t in batch] for batch in study.batches(list(by_key.values()))]
    ALONE.share_out(rows, batches, compute, "answers")


def said(emotions: Sequence[str], scores: Sequence[float]) -> str:
    """The label that is answered: the likeliest."""
    return emotions[int(np.argmax(scores))]


def winner(trial: Trial, answer: str) -> str:
    """ "audio" where the answer is A, "text" where it is T, else "neither"; A = T counts as audio."""
    return "audio" if answer == trial.clip.emotion else "text" if answer == trial.told else "neither"


def heard_rightly(study: Study, trials: Sequence[Trial], rows: Store) -> set[str]:
    """Ids of the clips that are named rightly whenever only the audio counts."""
    right: dict[str, bool] = {}
    for t in trials:
        if t.condition == "audio":
            good = said(study.emotions, rows[t.key]["scores"]) == t.clip.emotion
            right[t.clip.id] = right.get(t.clip.id, True) and good
    return {name for name, good in right.items() if good}


def behaviour(study: Study, trials: Sequence[Trial], rows: Store) -> Row:
    """Shares that follow audio, text and neither, of every condition and part of it.

    Returns:
        {"conflict": {"instruction": {part: cell}}, …}; a cell has "trials", "clips", "speakers", "note" and
        an interval for each of WINNERS, or for "right" where the text tells nothing else; parts are "all",
        "heard" (clips whose emotion is named rightly without the text), "emotion=sad", "told=…", …
    """
    answers = answers_of(study, trials, rows)
    heard = heard_rightly(study, trials, rows)
    parts: Mapping[str, Callable[[Trial], str]] = {
        "emotion": lambda t: t.clip.emotion,
        "told": lambda t: t.told or "",
        "intensity": lambda t: t.clip.intensity,
        "language": lambda t: t.language,
        "wording": lambda t: f"{t.language}{t.wording}",
        "pair": lambda t: f"{t.clip.emotion}>{t.told}",
    }
    table: Row = {}
    for condition in ("audio", "conflict", "consistent"):
        of_condition = [t for t in trials if t.condition == condition]
        for place in sorted({t.place for t in of_condition}):
            own = [t for t in of_condition if t.place == place]
            cells = {"all": share_cell(own, answers)}
            if known := [t for t in own if t.clip.id in heard]:
                cells["heard"] = share_cell(known, answers)
            for name, of in parts.items():
                if condition != "conflict" and name in ("told", "pair"):
                    continue
                for value in sorted({of(t) for t in own}):
                    cells[f"{name}={value}"] = share_cell([t for t in own if of(t) == value], answers)
            table.setdefault(condition, {})[place if condition != "audio" else "instruction"] = cells
    mass = [float(torch.tensor(rows[t.key]["scores"]).exp().sum()) for t in trials]
    return {"table": table, "heard": len(heard), "label_mass": float(np.mean(mass))}


def answers_of(study: Study, trials: Sequence[Trial], rows: Store) -> dict[str, str]:
    """The label that each trial was answered by, by its key."""
    return {t.key: said(study.emotions, rows[t.key]["scores"]) for t in trials}


def compare(trials: Sequence[Trial], before: Mapping[str, str], after: Mapping[str, str]) -> list[Row]:
    """What changed from one model's answers to another's on the same prompts, by condition and place.

    Args:
        before, after: of `answers_of`; trials that either has not are passed over.

    Returns:
        {"condition", "place", "trials", "units", and of each of WINNERS, or of "right" where the text tells
        nothing else, its change with interval and p (exchange of the two models speaker by speaker; "p_holm"
        over all of these)}.

    Raises:
        UserError: they share no prompt.
    """
    own = [t for t in trials if t.key in before and t.key in after]
    if not own:
        raise UserError(
            "the two models were asked no prompt in common: name the same stimuli, options and seed"
        )
    found: list[Row] = []
    cells: dict[tuple[str, str, str], Interval] = {}
    for condition, place in dict.fromkeys((t.condition, t.place) for t in own):
        part = [t for t in own if (t.condition, t.place) == (condition, place)]
        clusters = clusters_of([t.clip for t in part])
        changes = paired_differences(shares(part, before), shares(part, after), clusters)
        about = {"condition": condition, "place": place, "trials": len(part), "units": clusters.note}
        found.append(about | changes)
        cells |= {(condition, place, name): cell for name, cell in changes.items()}
    correct(cells)
    return found


def shares(trials: Sequence[Trial], answers: Mapping[str, str]) -> dict[str, Statistic]:
    """Shares that follow each of WINNERS, or that are "right" where no text tells another emotion."""
    won = np.array([winner(t, answers[t.key]) for t in trials])
    conflicting = any(t.condition == "conflict" for t in trials)
    names = {name: name for name in WINNERS} if conflicting else {"right": "audio"}
    return {name: mean((won == who).astype(np.float64)) for name, who in names.items()}


def share_cell(trials: Sequence[Trial], answers: Mapping[str, str]) -> Row:
    """One cell of `behaviour`."""
    clusters = clusters_of([t.clip for t in trials])
    clips = len({t.clip.id for t in trials})
    about = {"trials": len(trials), "clips": clips, "speakers": clusters.speakers, "note": clusters.note}
    return about | intervals(shares(trials, answers), clusters)
