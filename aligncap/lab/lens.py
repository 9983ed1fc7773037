"""Where it is decided: the logit lens at the answer position, raw and tuned, and probes of the states.

The raw lens reads every state through the model's own last norm and head (nostalgebraist 2020); the tuned
lens first translates it to the last state by an affine map of its layer (Belrose et al. 2023), here fitted by
ridge regression on text that the lens is not used on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from aligncap.lab.behaviour import winner
from aligncap.lab.label_words import label_logits
from aligncap.lab.models import SpeechModel
from aligncap.lab.stimuli import Trial, voice_of
from aligncap.lab.study import Study
from aligncap.utils.io import Row
from aligncap.utils.progress import track
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Statistic,
    bootstrap,
    clusters_of,
    intervals,
    mean,
    recall_sums,
    uar,
)

SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge penalties in the mean variance of a state's dimensions
FOLDS = 5


@dataclass(frozen=True, eq=False)
class States:
    """Of each trial and layer: the state of the answer position, and the means over the tokens of sound and
    over those that tell T (0 where nothing does); (layers + 1, trials, width) each, float32."""

    answer: Tensor
    audio: Tensor
    told: Tensor


@torch.no_grad()
def collect_states(study: Study, trials: Sequence[Trial], title: str = "states") -> States:
    """States of the trials, in their order."""
    places = {t.key: i for i, t in enumerate(trials)}
    shape = (study.model.blocks + 1, len(trials), study.model.width)
    found = [torch.zeros(shape) for _ in range(3)]
    for batch in track(study.batches(trials), None, title):
        prefill = study.prefill(batch)
        states = study.model.run(prefill, states=True).states
        assert states is not None
        rows = [places[t.key] for t in batch]
        masks = (prefill.answer, prefill.audio, prefill.words([t.named for t in batch]))
        for kept, mask in zip(found, masks, strict=True):
            weight = mask.to(states) / mask.sum(1, keepdim=True).clamp(min=1)
            kept[:, rows] = torch.einsum("lbnw,bn->lbw", states, weight).float().cpu()
    return States(*found)


# ---- the tuned lens


@dataclass(frozen=True, eq=False)
class Translators:
    """Affine maps from each layer's state to the last: state + state · weight + bias.

    weight: (layers + 1, width, width); bias: (layers + 1, width). penalty: of each layer, as a share of the
    mean variance of its dimensions.
    """

    weight: Tensor
    bias: Tensor
    penalty: list[float]

    def __call__(self, states: Tensor) -> Tensor:
        """(layers + 1, …, width) to the same shape."""
        flat = states.flatten(1, -2)
        moved = flat + torch.bmm(flat, self.weight) + self.bias[:, None]
        return moved.view(states.shape)


def fit_translators(states: Tensor) -> Translators:
    """Translators of states (layers + 1, tokens, width), the last fifth of the tokens choosing the penalty.

    The ridge penalty draws towards the identity, which is the raw lens.
    """
    layers, count, width = states.shape
    cut = max(1, count - count // 5)
    weights, biases, chosen = torch.zeros(layers, width, width), torch.zeros(layers, width), []
    for layer in range(layers - 1):
        x, y = states[layer].double(), (states[-1] - states[layer]).double()
        errors = []
        for share in SHARES:
            weight, bias = _ridge(x[:cut], y[:cut], share)
            errors.append(float(((x[cut:] @ weight + bias - y[cut:]) ** 2).mean()) if cut < count else share)
        chosen.append(SHARES[int(np.argmin(errors))])
        weight, bias = _ridge(x, y, chosen[-1])
        weights[layer], biases[layer] = weight.float(), bias.float()
    return Translators(weights, biases, [*chosen, 0.0])


def _ridge(x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """weight and bias of y ≈ x · weight + bias, by least squares with a penalty on the weight."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = x - mean_x, y - mean_y
    penalty = share * float(a.square().sum()) / a.shape[1] + 1e-9
    if len(a) < a.shape[1]:  # the dual form is the smaller one
        dual = torch.linalg.solve(a @ a.T + penalty * torch.eye(len(a), dtype=a.dtype), b)
        weight = a.T @ dual
    else:
        weight = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return weight, mean_y - mean_x @ weight


@torch.no_grad()
def text_states(study: Study, trials: Sequence[Trial]) -> Tensor:
    """States at all text tokens of prompts, (layers + 1, tokens, width); a token that has the same tokens
    before it as an earlier one is left out, since its states are the same."""
    seen: set[tuple[str, int]] = set()
    parts = []
    for batch in track(study.batches(trials), None, "held-out text"):
        prefill = study.prefill(batch)
        states = study.model.run(prefill, states=True).states
        assert states is not None
        for row, (text, offsets) in enumerate(zip(prefill.texts, prefill.offsets, strict=True)):
            pad = prefill.mask.shape[1] - len(offsets)
            sound = prefill.audio[row, pad:].long().cumsum(0)
            new = []
            for place, (_, end) in enumerate(offsets):
                if prefill.audio[row, pad + place]:
                    continue
                name = (text[:end] + (batch[row].clip.id if sound[place] else ""), place)
                if name not in seen:
                    seen.add(name)
                    new.append(pad + place)
            parts.append(states[:, row, new].float().cpu())
    return torch.cat(parts, 1)


# ---- curves


@torch.no_grad()
def label_curves(
    model: SpeechModel, states: Tensor, tokens: Mapping[str, list[int]], at_a_time: int = 64
) -> Tensor:
    """Log-probability of the labels through the lens, (layers + 1, trials, labels), of answer states."""
    layers, count = states.shape[:2]
    flat = states.reshape(layers * count, -1)
    parts = [
        label_logits(model.readout(part.to(model.device, model.model.dtype)).log_softmax(-1), tokens).cpu()
        for part in flat.split(at_a_time)
    ]
    return torch.cat(parts).view(layers, count, -1)


def turn(curve: Floats) -> float:
    """The first layer from which a curve keeps the sign that it ends with; NaN of a curve that ends at 0.

    >>> turn(np.array([0.1, -0.2, -0.1, 0.3, 0.2]))
    3.0
    """
    signs = np.sign(curve)
    if signs[-1] == 0 or not np.isfinite(curve).all():
        return float("nan")
    other = np.flatnonzero(signs != signs[-1])
    return float(other[-1] + 1 if len(other) else 0)


def rise(curve: Floats) -> float:
    """The first layer from which a curve stays beyond half of the value that it ends with.

    >>> rise(np.array([0.0, 0.1, 0.2, 1.5, 2.0]))
    3.0
    """
    if not curve[-1] or not np.isfinite(curve).all():
        return float("nan")
    short = np.flatnonzero(curve / curve[-1] < 0.5)
    return float(short[-1] + 1 if len(short) else 0)


def curve_cell(curves: Floats, clusters: Clusters) -> Row:
    """Mean of curves (trials, layers + 1), its interval by layer, and where it turns and rises.

    A curve that has its final sign from the first layer on never turns: its `rise` says when it is decided.
    """
    rows = intervals({str(i): mean(column) for i, column in enumerate(curves.T)}, clusters)
    return {
        "trials": len(curves),
        "speakers": clusters.speakers,
        "note": clusters.note,
        "mean": [row["value"] for row in rows.values()],
        "low": [row["low"] for row in rows.values()],
        "high": [row["high"] for row in rows.values()],
        "turn": bootstrap(curves, clusters, turn),
        "rise": bootstrap(curves, clusters, rise),
    }


def lens(study: Study, trials: Sequence[Trial], states: States, translators: Translators | None) -> Row:
    """Δlogit_l = log p_l(T) − log p_l(A) of groups of trials, and how near each lens is to the output.

    Args:
        trials: of "conflict", or of "audio" with the T that is not told (see `told_beside`).

    Returns:
        {"raw": part, "tuned": part}; a part has "groups": {name: `curve_cell`} by condition, place and who
        won, "kl": of each layer the mean divergence from the output's labels, and "agreement": the share of
        trials whose likeliest label is the output's.
    """
    final = label_curves(study.model, states.answer[-1:], study.tokens)[0]
    kinds = {"raw": states.answer}
    if translators is not None:
        kinds["tuned"] = translators(states.answer)
    told = torch.tensor([study.index(str(t.told)) for t in trials])
    own = torch.tensor([study.index(t.clip.emotion) for t in trials])
    answers = final.argmax(1)
    won = [winner(t, study.emotions[a]) for t, a in zip(trials, answers.tolist(), strict=True)]
    groups: dict[str, list[int]] = {}
    for i, t in enumerate(trials):
        name = t.condition if t.condition == "audio" else f"{t.condition}, {t.place}"
        groups.setdefault(name, []).append(i)
        if t.condition != "audio" and won[i] != "neither":
            groups.setdefault(f"{name}, {won[i]} wins", []).append(i)
    found: Row = {}
    for kind, at in kinds.items():
        curves = label_curves(study.model, at, study.tokens)
        ahead = curves.gather(2, told.expand(len(curves), -1)[..., None])[..., 0]
        delta = (ahead - curves.gather(2, own.expand(len(curves), -1)[..., None])[..., 0]).T.double().numpy()
        among, last = curves.log_softmax(2), final.log_softmax(1)
        kl = (last.exp() * (last - among)).sum(2).mean(1)
        found[kind] = {
            "groups": {
                name: curve_cell(delta[rows], clusters_of([trials[i].clip for i in rows]))
                for name, rows in groups.items()
            },
            "kl": kl.tolist(),
            "agreement": (curves.argmax(2) == answers).float().mean(1).tolist(),
        }
    return found


# ---- probes


def probe(states: Tensor, labels: Sequence[str], voices: Sequence[str]) -> tuple[list[list[str]], int]:
    """What a linear classifier says of each trial, by layer, speakers held out in turn.

    Args:
        states: (layers, trials, width).

    Returns:
        (layers, trials) labels said, and the number of folds.
    """
    folds = min(FOLDS, len(set(voices)))
    if folds < 2:
        return [], folds
    truth = np.array(labels)
    answers = []
    for layer in states.double().numpy():
        told = np.empty(len(truth), dtype=truth.dtype)
        for train, test in GroupKFold(folds).split(layer, truth, voices):
            model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=(1.0, 10.0, 100.0, 1000.0)))
            told[test] = model.fit(layer[train], truth[train]).predict(layer[test])
        answers.append(told.tolist())
    return answers, folds


def probe_cells(states: Tensor, labels: Sequence[str], trials: Sequence[Trial]) -> list[Row]:
    """UAR of `probe` by layer with its interval over speakers; empty where speakers are too few."""
    answers, _ = probe(states, labels, [voice_of(t.clip) for t in trials])
    clusters = clusters_of([t.clip for t in trials])
    names = sorted(set(labels))
    sums = [recall_sums(labels, row, names) for row in answers]
    layers = {str(i): Statistic(found, uar, 1.0) for i, found in enumerate(sums)}
    return list(intervals(layers, clusters).values())


def probes(trials: Sequence[Trial], states: States) -> Row:
    """Emotion of the voice from the tokens of sound and from the answer position, and T from the latter.

    Returns:
        {condition: {"A from audio": [interval by layer], "A from answer": …, "T from answer": …,
        "chance": 1 / labels, "trials"}}.
    """
    found: Row = {}
    for condition in ("audio", "conflict"):
        rows = [i for i, t in enumerate(trials) if t.condition == condition]
        own = [trials[i] for i in rows]
        voice = [t.clip.emotion for t in own]
        if len(set(voice)) < 2:
            continue
        part: Row = {
            "A from audio": probe_cells(states.audio[:, rows], voice, own),
            "A from answer": probe_cells(states.answer[:, rows], voice, own),
            "chance": 1 / len(set(voice)),
            "trials": len(rows),
        }
        if condition == "conflict":
            part["T from answer"] = probe_cells(states.answer[:, rows], [str(t.told) for t in own], own)
        found[condition] = part
    return found
