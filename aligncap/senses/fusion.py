"""`aligncap senses fuse`: one score of several senses', by weights that were best on dev.

Late fusion: the probabilities of all senses that have any, weighted and added. Every choice of weights with a
sum of 1 at a given step is tried, for every set of senses that may be present, so that fusion is never worse
on dev than its best sense by itself, which is one of the choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from rich.console import Console

from aligncap.senses.measures import difference, measured, table_of, write_confusion
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.sense import Score, read_scores, write_scores
from aligncap.utils.drawing import BLUE, GREY, INK, bare, figure, plain, png
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.f1 import macro_f1, weighted_f1
from aligncap.utils.io import Row, atomic_open, write_json
from aligncap.utils.options import Config, Range, named_values, option
from aligncap.utils.run_record import write_run_record

FILE = "fusion.json"
FEWEST = 20  # dev moments with all senses of a set; of fewer the weights of the whole set are shared out
MOST = 100_000  # choices of weights
_BLOCK = 20_000_000  # numbers held at a time while choices are tried
_JOIN = "+"


@dataclass
class FuseConfig(Config):
    """Late fusion of files of scores of the same moments, chosen on dev, measured on test.

    Any number of senses, by names of your own; a file of the captioner's scores is one more.

    Examples:
        aligncap senses fuse --dev text=td.jsonl voice=vd.jsonl face=fd.jsonl --test text=tt.jsonl voice=vt.jsonl face=ft.jsonl --out runs/fusion
    """  # noqa: E501

    dev: list[str] = option(help="NAME=SCORES of each sense on dev.")
    out: str = option(help="Folder for fusion.json, metrics.json, scores.jsonl and pictures.")
    test: list[str] = option(
        [], "NAME=SCORES of each sense on test; without, all is measured on dev, and said so."
    )
    beside: list[str] = option([], "NAME=SCORES on test that are only measured beside, such as gated fusion.")
    step: Annotated[float, Range(0.01, 0.5)] = option(0.02, "Of the weights.")
    metric: Literal["macro_f1", "weighted_f1"] = option("macro_f1", "What is best on dev.")

    def own_errors(self) -> list[str]:
        errors = []
        try:
            names = {
                key: [n for n, _ in named_values(getattr(self, key), key)]
                for key in ("dev", "test", "beside")
            }
        except UserErrors as error:
            return error.errors
        if len(names["dev"]) < 2 or any(len(set(own)) < len(own) for own in names.values()):
            errors.append("dev: two senses or more, each of another name")
        if self.test and set(names["test"]) != set(names["dev"]):
            errors.append("test: the same senses as dev, by the same names")
        if set(names["beside"]) & {*names["dev"], "fused"}:
            errors.append("beside: names of senses cannot be used again")
        if self.beside and not self.test:
            errors.append("beside: needs --test, on which it is measured")
        if any(_JOIN in name for name in names["dev"]):
            errors.append(f"dev: a name cannot hold {_JOIN!r}")
        if abs(round(1 / self.step) * self.step - 1) > 1e-9:
            errors.append(f"step={self.step}: must divide 1")
        elif comb(round(1 / self.step) + len(names["dev"]) - 1, len(names["dev"]) - 1) > MOST:
            errors.append(
                f"step={self.step}: more than {MOST:,} choices for {len(names['dev'])} senses; take more"
            )
        return errors


@dataclass
class Fusion:
    """Weights of senses for each set of those that are present ("text+voice"), and what was measured of each.

    measured: of each sense by itself, `measures.measured`; the talking app tells its LLM from it how far each
        can be trusted.
    """

    senses: list[str]
    weights: dict[str, dict[str, float]]
    measured: Row = field(default_factory=dict)
    measured_on: str = ""

    def of(self, present: Sequence[str]) -> dict[str, float]:
        """The weights of senses that are present: those of their set, else of all senses, shared out anew."""
        names = [name for name in self.senses if name in present]
        if (known := self.weights.get(_JOIN.join(names))) is not None:
            return known
        whole = {name: self.weights[_JOIN.join(self.senses)][name] for name in names}
        total = sum(whole.values())
        return {name: own / total if total else 1 / len(names) for name, own in whole.items()}


def load_fusion(folder: str | Path) -> Fusion:
    """The fusion of a folder that `aligncap senses fuse` wrote.

    Raises:
        UserError: there is none.
    """
    path = Path(folder) / FILE
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return Fusion(row["senses"], row["weights"], row["measured"], row["measured_on"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no fusion of senses; `aligncap senses fuse` writes one") from error


def fuse(scores: Mapping[str, Sequence[float] | None], fusion: Fusion) -> np.ndarray:
    """Probabilities (7,) of one moment from those of its senses; None or nan: the sense has nothing to go on.

    nan where no sense has.

    Raises:
        UserError: a sense that the fusion does not know.
    """
    if unknown := set(scores) - set(fusion.senses):
        raise UserError(f"{', '.join(sorted(unknown))}: the fusion knows {', '.join(fusion.senses)}")
    rows = {n: np.asarray(row, np.float64)[None] for n, row in scores.items() if row is not None}
    return fuse_all(rows, fusion)[0] if rows else np.full(7, np.nan)


def fuse_all(scores: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
    """`fuse` of n moments: (n, 7) of scores (n, 7) by sense, rows of nan where a sense is absent."""
    names = [name for name in fusion.senses if name in scores]
    stacked = np.stack([scores[name] for name in names])
    there = ~np.isnan(stacked).any(axis=2)
    result = np.full(stacked.shape[1:], np.nan)
    for pattern in np.unique(there, axis=1).T:
        rows = (there == pattern[:, None]).all(axis=0)
        if pattern.any():
            weights = fusion.of([name for name, own in zip(names, pattern, strict=True) if own])
            own = np.array([weights.get(name, 0.0) for name in names])
            result[rows] = np.einsum("k,kne->ne", own, np.nan_to_num(stacked[:, rows]))
    return result


# ---- the choice of weights


def grid(senses: int, step: float) -> np.ndarray:
    """Every choice of weights with a sum of 1: (choices, senses).

    >>> grid(2, 0.5).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    places = round(1 / step) + senses - 1  # of the parts and of the bars that divide them among the senses
    bars = np.array(list(combinations(range(places), senses - 1))).reshape(-1, senses - 1)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, places)))
    return (np.diff(ends, axis=1) - 1) / round(1 / step)


def grid_f1(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macro and weighted F1 of each choice of weights, (choices,) each.

    Args:
        scores: (senses, n, 7) without nan; truth: (n,) places in SEVEN; weights: (choices, senses).
    """
    own = np.bincount(truth, minlength=7)
    block = max(1, _BLOCK // (7 * len(truth)))
    macro, weighted = [], []
    for start in range(0, len(weights), block):
        part = weights[start : start + block]
        said = np.einsum("wk,kne->wne", part, scores, optimize=True).argmax(axis=2)
        row = np.arange(len(part))[:, None] * 7
        counts = np.bincount((row + said).ravel(), minlength=7 * len(part)).reshape(-1, 7)
        right = np.where(said == truth, row + truth, -1)
        hits = np.bincount(right[right >= 0], minlength=7 * len(part)).reshape(-1, 7)
        sums = np.concatenate([hits, np.broadcast_to(own, hits.shape), counts], axis=1, dtype=np.float64)
        macro.append(macro_f1(sums))
        weighted.append(weighted_f1(sums))
    return np.concatenate(macro), np.concatenate(weighted)


def choose(weights: np.ndarray, values: np.ndarray) -> int:
    """Place of the best choice; of equally good ones that nearest to their middle, which is the steadiest."""
    best = np.flatnonzero(values >= values.max() - 1e-12)
    away = ((weights[best] - weights[best].mean(axis=0)) ** 2).sum(axis=1)
    return int(best[away.argmin()])


def learn(scores: Mapping[str, np.ndarray], labels: Sequence[str | None], step: float, metric: str) -> Fusion:
    """Weights for every set of senses of which FEWEST labelled moments have all; see `Fusion.of` for others.

    Raises:
        UserError: fewer labelled moments have all senses.
    """
    names = list(scores)
    stacked = np.stack([scores[name] for name in names])
    there = ~np.isnan(stacked).any(axis=2) & np.array([label is not None for label in labels])
    weights: dict[str, dict[str, float]] = {}
    for size in range(len(names), 0, -1):
        for chosen in combinations(range(len(names)), size):
            rows = np.flatnonzero(there[list(chosen)].all(axis=0))
            if len(rows) < FEWEST and size == len(names):
                what = f"labelled dev moments have all of {', '.join(names)}; {FEWEST} are needed"
                raise UserError(f"only {len(rows)} {what}")
            if len(rows) < FEWEST or size == 1:
                continue
            choices = grid(size, step)
            truth = np.array([SEVEN.index(str(labels[int(i)])) for i in rows])
            found = grid_f1(stacked[list(chosen)][:, rows], truth, choices)[metric == "weighted_f1"]
            best = choices[choose(choices, found)]
            own = {names[k]: round(float(w), 6) for k, w in zip(chosen, best, strict=True)}
            weights[_JOIN.join(own)] = own
    return Fusion(names, weights | {name: {name: 1.0} for name in names})


# ---- the command


@dataclass(frozen=True)
class Part:
    """Moments (without what was said, heard or seen), and scores (n, 7) of them by sense."""

    moments: list[Moment]
    scores: dict[str, np.ndarray]


def read_part(words: Sequence[str], option_name: str) -> Part:
    """Files of scores NAME=FILE, put in the order of the first; a moment that one lacks has no scores there.

    Raises:
        UserErrors: every file that is none, and moments whose labels differ between files.
    """
    rows: dict[str, Score] = {}
    found: dict[str, dict[str, np.ndarray]] = {}
    errors: list[str] = []
    for name, path in named_values(words, option_name):
        try:
            own, values = read_scores(path)
        except UserError as error:
            errors += str(error).splitlines()
            continue
        wrong = [row["id"] for row in own if rows.setdefault(row["id"], row)["label"] != row["label"]]
        if wrong:
            errors.append(
                f"{path}: {len(wrong)} moments have another label than elsewhere, such as {wrong[0]}"
            )
        found[name] = {row["id"]: value for row, value in zip(own, values, strict=True)}
    if errors:
        raise UserErrors(errors)
    none = np.full(7, np.nan)
    stacked = {name: np.stack([own.get(key, none) for key in rows]) for name, own in found.items()}
    return Part([Moment(row["id"], row["label"], row["speaker"]) for row in rows.values()], stacked)


def run_fuse(config: FuseConfig) -> int:
    """`aligncap senses fuse`. Raises UserError: files of other moments, too few with all senses."""
    out, on = Path(config.out), "test" if config.test else "dev"
    dev = read_part(config.dev, "dev")
    part = read_part([*config.test, *config.beside], "test") if config.test else dev
    fusion = learn(dev.scores, [m.label for m in dev.moments], config.step, config.metric)
    names, moments = fusion.senses, part.moments
    scores = {"fused": fuse_all({name: part.scores[name] for name in names}, fusion), **part.scores}
    rows = {}
    for name, own in scores.items():  # each where it has something to go on
        there = np.flatnonzero(~np.isnan(own).any(axis=1))
        rows[name] = measured([moments[i] for i in there], own[there])
    on_dev = {name: measured(dev.moments, own) for name, own in dev.scores.items()}
    on_dev["fused"] = measured(dev.moments, fuse_all(dev.scores, fusion))
    best = max(names, key=lambda name: on_dev[name][config.metric]["value"] or 0.0)
    gaps = {f"fused − {n}": difference(moments, own, scores["fused"]) for n, own in part.scores.items()}
    fusion.measured, fusion.measured_on = {name: rows[name] for name in names}, on
    write_json(out / FILE, asdict(fusion) | {"step": config.step, "metric": config.metric})
    metrics = {"measured_on": on, "best_on_dev": best, "systems": rows, "dev": on_dev, "differences": gaps}
    write_json(out / "metrics.json", metrics)
    write_scores(out / "scores.jsonl", moments, scores["fused"])
    pictures = [out / "confusion.png"]
    write_confusion(pictures[0], moments, scores["fused"], f"fused, {on}", "emotion of the senses together")
    if len(names) in (2, 3):
        pictures.append(out / "weights.png")
        with atomic_open(pictures[-1], "wb") as file:
            file.write(weights_picture(dev, fusion, config))
    data = [path for words in (config.dev, config.test, config.beside) for _, path in named_values(words, "")]
    write_run_record(out, "senses fuse", asdict(config), data)
    Console().print(table_of(rows, f"senses on {on}; best by itself on dev: {best}"))
    for senses, weights in fusion.weights.items():
        if _JOIN in senses:
            print(f"{senses}: " + ", ".join(f"{sense} {weight:.2f}" for sense, weight in weights.items()))
    print("pictures: " + ", ".join(map(str, pictures)))
    return 0


def weights_picture(dev: Part, fusion: Fusion, config: FuseConfig) -> bytes:
    """Dev score by weights: a triangle of three senses, a line of two; the choice is marked."""
    names = fusion.senses
    stacked = np.stack([dev.scores[name] for name in names])
    labels = [m.label for m in dev.moments]
    rows = np.flatnonzero(~np.isnan(stacked).any(axis=(0, 2)) & np.array([x is not None for x in labels]))
    truth = np.array([SEVEN.index(str(labels[i])) for i in rows])
    choices = grid(len(names), config.step)
    values = grid_f1(stacked[:, rows], truth, choices)[config.metric == "weighted_f1"]
    own = fusion.weights[_JOIN.join(names)]
    chosen = np.array([own[name] for name in names])
    title = f"{config.metric.replace('_f1', ' F1')} on dev ({len(rows)} moments)"
    picture = figure(5.6, 4.4)
    axes = picture.add_subplot()
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    if len(names) == 2:
        axes.plot(choices[:, 1], values, color=BLUE)
        axes.axvline(chosen[1], color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel(f"weight of {plain(names[1])} (the rest: {plain(names[0])})", color=GREY)
        bare(axes)
        return png(picture)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    x, y = (choices @ corners).T
    drawn = axes.tripcolor(x, y, values, shading="gouraud", cmap="viridis")
    picture.colorbar(drawn, ax=axes, shrink=0.8)
    axes.plot(
        *(chosen @ corners),
        marker="o",
        markersize=9,
        markerfacecolor="none",
        color="white",
        markeredgewidth=2,
    )
    for name, corner, value, below in zip(names, corners, np.eye(3), (True, True, False), strict=True):
        score = values[(choices == value).all(axis=1)][0]
        text = f"{plain(name)} alone\n{score:.3f}"
        place = (0, -6) if below else (0, 6)
        vertical = "top" if below else "bottom"
        axes.annotate(text, corner, place, textcoords="offset points", ha="center", va=vertical, fontsize=9)
    words = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, chosen, strict=True))
    axes.text(0.5, -0.24, f"circle: {plain(words)}: {values.max():.3f}", ha="center", color=INK, fontsize=9)
    axes.set_xlim(-0.15, 1.15)
    axes.set_ylim(-0.28, 1.02)
    axes.set_aspect("equal")
    axes.axis("off")
    return png(picture)
