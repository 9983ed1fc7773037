"""Numbers, pictures and a table of speech and text states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F

from aligncap.data.manifest import Utterance
from aligncap.text.cue_report import COLOURS, OTHER_COLOUR
from aligncap.utils.drawing import INK, PALE, figure, plain, png
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, clusters_of, intervals, ratio

NEIGHBOURS = 10
TITLES = {
    "mixing": "neighbours of the other modality",
    "pair_gap": "own pair's cosine less the others'",
    "recall_at_1": "speech finds its own text",
    "emotion_at_1": "speech finds a text of its emotion",
}
ROWS = {"before": "before the LLM", "after": "after decoding", "after_wrong": "after decoding, wrong audio"}
CENTRED = "centred"
States = Mapping[str, tuple[Tensor, Tensor]]  # (speech, text) of ROWS, (clips, width) each


def numbers_of(states: States, utterances: Sequence[Utterance]) -> Row:
    """`state_numbers` of each of ROWS, and under "centred" the same of states less the mean of their kind.

    What was read before the LLM is the teacher's text; after decoding it is that text and the caption.
    """
    read = [f"{u.gender}\n{u.transcript}\n{u.p_act[0]}" for u in utterances]
    said = [f"{text}\n{u.captions[0]}" for text, u in zip(read, utterances, strict=True)]
    found = {}
    for row, pair in states.items():
        how: Row = {"texts": read if row == "before" else said, "utterances": utterances}
        found[row] = state_numbers(*pair, **how)
        found[row][CENTRED] = state_numbers(*map(centred, pair), **how)
    return found


def centred(states: Tensor) -> Tensor:
    """States less their mean."""
    return states - states.mean(0)


def state_numbers(
    speech: Tensor,
    text: Tensor,
    *,
    texts: Sequence[str],
    utterances: Sequence[Utterance],
) -> Row:
    """Mixing, pair gap and retrieval of n pairs of states (n, width), by cosine.

    mixing: share of the other modality among the ten nearest of all other states, over both modalities;
    `chance` is its value when they are fully mixed, n / (2n - 1).
    pair_gap: cosine of a clip's speech and text less its mean cosine with other clips' texts.
    recall_at_1: share of clips whose nearest text is their own (same words: the same text); emotion_at_1:
    whose nearest text is of a clip with their label.

    Args:
        texts: what the teacher read of each clip; clips that share it are one and the same answer.

    Returns:
        {"clips", "texts", name: {"value", "low", "high", "chance"}}: 95 % intervals over speakers;
        None for what cannot be measured.
    """
    count = len(texts)
    speech, text = (F.normalize(states.double(), dim=-1) for states in (speech, text))
    across = (speech @ text.T).numpy()
    groups = np.unique(np.array(texts), return_inverse=True)[1]
    same_text = groups[:, None] == groups[None, :]
    labels = np.array([u.emotion or "" for u in utterances])
    known = labels != ""
    same_label = (labels[:, None] == labels[None, :]) & known[:, None]
    everyone, nearest = np.arange(count), across.argmax(1)
    others = (~same_text).sum(1)
    mean_other = np.where(~same_text, across, 0).sum(1) / np.maximum(others, 1)
    # of each clip its value, and whether it counts
    chance = float(same_label[known].mean()) if known.any() else 0.0
    values: dict[str, tuple[Floats, NDArray[np.bool_], float]] = {
        "mixing": (_mixing(torch.cat([speech, text]), count), others >= 0, count / (2 * count - 1)),
        "pair_gap": (np.diag(across) - mean_other, others > 0, 0.0),
        "recall_at_1": (same_text[everyone, nearest], others >= 0, float(same_text.mean())),
        "emotion_at_1": (same_label[everyone, nearest], known, chance),
    }
    statistics = {name: ratio(each * use, use.astype(np.float64)) for name, (each, use, _) in values.items()}
    cells = intervals(statistics, clusters_of(utterances))
    numbers = {name: cell | {"chance": values[name][2]} for name, cell in cells.items()}
    return {"clips": count, "texts": int(groups.max()) + 1, **numbers}


def _mixing(states: Tensor, count: int) -> Floats:
    """Of each clip's two states, the mean share of the other modality among their neighbours, (count,)."""
    near = states @ states.T
    near.fill_diagonal_(-torch.inf)
    nearest = near.topk(min(NEIGHBOURS, len(states) - 1)).indices
    is_text = torch.arange(len(states)) >= count
    other = (is_text[nearest] != is_text[:, None]).double().mean(1)
    return ((other[:count] + other[count:]) / 2).numpy()


def tsne(speech: Tensor, text: Tensor, *, seed: int) -> NDArray[np.float32]:
    """t-SNE by cosine distance of n speech and n text states (n, width) together: (2, n, 2)."""
    both = torch.cat([speech, text]).numpy()
    perplexity = min(30.0, (len(both) - 1) / 3)
    method = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return method.fit_transform(both).reshape(2, len(speech), 2)


def states_picture(
    states: Mapping[str, States],
    systems: Mapping[str, Row],
    utterances: Sequence[Utterance],
    seed: int,
    less_mean: bool,
) -> bytes:
    """PNG: a row a system, columns before and after; colour is the emotion, the marker speech or text.

    Args:
        systems: `numbers_of` by system, written under the panels.
        less_mean: of states less the mean of their kind.
    """
    picture = figure(9.6, 0.9 + 4.1 * len(states))
    panels = picture.subplots(len(states), 2, squeeze=False)
    emotions = [u.emotion or "" for u in utterances]
    order = [e for e in COLOURS if e in emotions] + sorted({*emotions} - {"", *COLOURS})
    colours = [COLOURS.get(emotion, OTHER_COLOUR) for emotion in emotions]
    style: Row = {"c": colours, "s": 26, "edgecolors": INK, "linewidths": 0.4}
    for row, (name, found) in zip(panels, states.items(), strict=True):
        numbers = {key: systems[name][key][CENTRED] if less_mean else systems[name][key] for key in ROWS}
        for axes, column in zip(row, ("before", "after"), strict=True):
            speech, text = tsne(*(centred(s) if less_mean else s for s in found[column]), seed=seed)
            axes.scatter(*text.T, marker="^", alpha=0.75, **style)
            axes.scatter(*speech.T, marker="o", alpha=0.9, **style)
            axes.set_title(f"{plain(name)}: {ROWS[column]}", fontsize=11, color=INK, loc="left")
            wrong = numbers["after_wrong"] if column == "after" else None
            axes.set_xlabel(_under(numbers[column], wrong), fontsize=8.5, color=INK)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(PALE)
    kinds = [("o", "white", "speech"), ("^", "white", "text")]
    kinds += [("s", COLOURS.get(emotion, OTHER_COLOUR), emotion) for emotion in order]
    edge: Row = {"linestyle": "", "markeredgecolor": INK, "markeredgewidth": 0.6}
    marks = [Line2D([], [], marker=m, color=c, label=label, **edge) for m, c, label in kinds]
    columns = -(-len(marks) // 2) if len(marks) > 6 else len(marks)
    title = "t-SNE by cosine" + "; states less the mean of their kind" * less_mean
    look: Row = {"frameon": False, "fontsize": 9.5, "title_fontsize": 8.5, "handletextpad": 0.1}
    picture.legend(
        handles=marks, loc="outside lower center", ncols=columns, title=title, labelcolor=INK, **look
    )
    picture.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return png(picture)


def _under(numbers: Row, wrong: Row | None) -> str:
    mixing, gap, recall = (numbers[name] for name in ("mixing", "pair_gap", "recall_at_1"))
    nearer = "" if gap["value"] is None else f" · own pair nearer by {gap['value']:.3f}"
    rival = "" if wrong is None else f", wrong audio {100 * wrong['recall_at_1']['value']:.0f} %"
    return (
        f"neighbours of the other kind: {100 * mixing['value']:.0f} % "
        f"(mixed: {100 * mixing['chance']:.0f} %){nearer}\n"
        f"speech finds its own text: {100 * recall['value']:.0f} % of {numbers['clips']} "
        f"(chance {100 * recall['chance']:.1f} %{rival})"
    )


def states_table(systems: Mapping[str, Row]) -> Table:
    """`numbers_of` by system, for a terminal."""
    first = next(iter(systems.values()))["before"]
    sheet = Table(
        "system",
        "where",
        title=f"speech and text states of {first['clips']} clips, {first['texts']} different texts",
        caption="95 % intervals over speakers; centred: less the mean of its kind; "
        "wrong audio: the same captions, but another clip is heard",
    )
    for name, title in TITLES.items():
        chance = "" if name == "pair_gap" else f" (chance {first[name]['chance']:.3f})"
        sheet.add_column(title + chance, justify="right")
    for name, system in systems.items():
        sheet.add_section()
        for row, title in ROWS.items():
            sheet.add_row(Text(name if row == "before" else ""), title, *_cells(system[row]))
            sheet.add_row("", "  centred", *_cells(system[row][CENTRED]))
    return sheet


def _cells(numbers: Row) -> list[Text]:
    """Value and interval of each column; "–" where there is none."""
    cells = (numbers[name].values() for name in TITLES)
    return [Text("–" if v is None else f"{v:.3f} [{low:.2f}, {high:.2f}]") for v, low, high, *_ in cells]
