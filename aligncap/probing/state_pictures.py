"""The paper's figure of speech and text states by t-SNE, and the numbers that stand beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aligncap.captions.cue_report import COLOURS, OTHER_COLOUR
from aligncap.drawing import INK, PALE, figure, plain, png
from aligncap.errors import UserError
from aligncap.io import atomic_open, write_json
from aligncap.manifest import Utterance
from aligncap.models.checkpoints import base_of
from aligncap.probing.state_numbers import NEIGHBOURS, TITLES, state_numbers
from aligncap.probing.states import States, choose_clips, collect_states
from aligncap.run_record import write_run_record

if TYPE_CHECKING:
    from rich.table import Table

FEWEST = 10
PANELS = {"before": "before the LLM", "after": "after decoding"}
ROWS = {**PANELS, "after_wrong": "after decoding, wrong audio"}
CENTRED = "centred"


def write_states(
    models: Mapping[str, Path],
    manifest: Path,
    out: Path,
    *,
    limit: int = 200,
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Write states.png, states_centred.png, states.json and run.json into `out`: checkpoints by name, a row
    of panels each.

    Speech and text keep a constant distance whatever else they share (the modality gap, Liang et al. 2022),
    which hides all else from neighbours and t-SNE; the second picture is of states less the mean of their
    kind.

    Args:
        models: name in the picture to folder of the checkpoint.
        limit: clips, drawn so that emotions come as even as they can.
        dtype: "float32" or "bfloat16".

    Returns:
        The content of states.json.

    Raises:
        UserError: scikit-learn is missing, there are too few clips, or a checkpoint or clip cannot be used.
    """
    import torch

    _tsne()  # what is missing is said before minutes are spent
    utterances = choose_clips(manifest, limit, seed)
    if len(utterances) < FEWEST:
        raise UserError(
            f"{manifest}: {len(utterances)} clips; a picture of states needs {FEWEST} or more, 200 are usual"
        )
    states = {
        name: collect_states(
            folder,
            manifest,
            utterances,
            dtype=getattr(torch, dtype),
            device=device,
            batch_size=batch_size,
            seed=seed,
        )
        for name, folder in models.items()
    }
    systems = {
        name: {"model": str(models[name]), "teacher": found.teacher, **_numbers(found, utterances, seed)}
        for name, found in states.items()
    }
    content = {"manifest": str(manifest), "seed": seed, "neighbours": NEIGHBOURS, "systems": systems}
    for file_name, prepare in (("states", _as_they_are), ("states_centred", _centred)):
        points = {
            name: {
                "before": tsne(prepare(found.speech_before), prepare(found.text_before), seed),
                "after": tsne(prepare(found.speech_after), prepare(found.text_after), seed),
            }
            for name, found in states.items()
        }
        shown = {
            name: {row: system[row][CENTRED] if prepare is _centred else system[row] for row in ROWS}
            for name, system in systems.items()
        }
        note = "t-SNE by cosine" + ("; states less the mean of their kind" if prepare is _centred else "")
        with atomic_open(out / f"{file_name}.png", "wb") as file:
            file.write(states_picture(points, shown, [u.emotion for u in utterances], note))
    write_json(out / "states.json", content)
    settings = {"models": {n: str(f) for n, f in models.items()}, "limit": limit, "dtype": dtype}
    folders = {place for folder in models.values() for place in _folders(folder)}
    weights = sorted(file for folder in folders for file in folder.glob("*.safetensors"))
    write_run_record(out, "states", settings, [manifest, *weights], seed=seed)
    return content


def _folders(checkpoint: Path) -> list[Path]:
    """The checkpoint's folder, and its base where it is an adapter."""
    adapter = (checkpoint / "adapter_config.json").is_file()
    return [checkpoint, base_of(checkpoint)] if adapter else [checkpoint]


def _numbers(states: States, utterances: Sequence[Utterance], seed: int) -> dict[str, Any]:
    """Of each row of the table; a text after decoding is what was read and the caption."""
    known: dict[str, Any] = {
        "emotions": [u.emotion for u in utterances],
        "speakers": [u.speaker for u in utterances],
        "seed": seed,
    }
    read = [f"{u.gender}\n{u.transcript}\n{u.p_act[0]}" for u in utterances]
    said = [f"{text}\n{u.captions[0]}" for text, u in zip(read, utterances, strict=True)]
    rows = {
        "before": (states.speech_before, states.text_before, read),
        "after": (states.speech_after, states.text_after, said),
        "after_wrong": (states.after_wrong, states.text_after, said),
    }
    return {
        row: {
            **state_numbers(speech, text, texts=texts, **known),
            CENTRED: state_numbers(_centred(speech), _centred(text), texts=texts, **known),
        }
        for row, (speech, text, texts) in rows.items()
    }


def _as_they_are(states: Any) -> Any:
    return states


def _centred(states: Any) -> Any:
    """States less their mean."""
    return states - states.mean(0)


def _tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError(
            "the picture of states needs scikit-learn: pip install 'aligncap[pictures]'"
        ) from error
    return TSNE


def tsne(speech: Any, text: Any, seed: int) -> NDArray[np.float32]:
    """t-SNE by cosine distance of n speech and n text states (n, width) together: (2, n, 2).

    Raises:
        UserError: scikit-learn is missing.
    """
    both = np.concatenate([np.asarray(speech), np.asarray(text)])
    perplexity = min(30.0, (len(both) - 1) / 3)
    method = _tsne()(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return method.fit_transform(both).reshape(2, len(speech), 2)


def states_picture(
    points: Mapping[str, Mapping[str, NDArray[np.float32]]],
    numbers: Mapping[str, Mapping[str, Any]],
    emotions: Sequence[str | None],
    note: str = "",
) -> bytes:
    """PNG: a row a system, columns before and after; colour is the emotion, the marker speech or text.

    Args:
        points: system to "before" and "after" to (2, clips, 2), speech first.
        numbers: of `state_numbers`, by system and column, written under each panel; "after_wrong" beside
            them, where it is there.
        note: a line below everything.
    """
    from matplotlib.lines import Line2D

    picture = figure(9.6, 0.9 + 4.1 * len(points))
    panels = picture.subplots(len(points), 2, squeeze=False)
    present = set(emotions)
    order = [e for e in COLOURS if e in present] + sorted(e for e in present if e and e not in COLOURS)
    colours = [COLOURS.get(e or "", OTHER_COLOUR) for e in emotions]
    style: dict[str, Any] = {"edgecolors": INK, "linewidths": 0.4}
    for row, (name, columns) in zip(panels, points.items(), strict=True):
        for axes, (column, title) in zip(row, PANELS.items(), strict=True):
            (speech, text) = columns[column]
            axes.scatter(*text.T, c=colours, marker="^", s=26, alpha=0.75, **style)
            axes.scatter(*speech.T, c=colours, marker="o", s=26, alpha=0.9, **style)
            axes.set_title(f"{plain(name)}: {title}", fontsize=11, color=INK, loc="left")
            wrong = numbers[name].get("after_wrong") if column == "after" else None
            axes.set_xlabel(_under(numbers[name][column], wrong), fontsize=8.5, color=INK)
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color(PALE)
    marks = [
        Line2D([], [], marker=marker, linestyle="", color="white", markeredgecolor=INK, label=label)
        for marker, label in (("o", "speech"), ("^", "text"))
    ]
    for emotion in order:
        colour = COLOURS.get(emotion, OTHER_COLOUR)
        marks.append(
            Line2D(
                [], [], marker="s", linestyle="", color=colour, markeredgecolor=INK, mew=0.4, label=emotion
            )
        )
    picture.legend(
        handles=marks,
        loc="outside lower center",
        ncols=-(-len(marks) // 2) if len(marks) > 6 else len(marks),
        frameon=False,
        fontsize=9.5,
        handletextpad=0.1,
        labelcolor=INK,
        title=note or None,
        title_fontsize=8.5,
    )
    picture.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return png(picture)


def _under(numbers: Mapping[str, Any], wrong: Mapping[str, Any] | None) -> str:
    mixing, gap, recall = (numbers[name] for name in ("mixing", "pair_gap", "recall_at_1"))
    nearer = "" if gap["value"] is None else f" · own pair nearer by {gap['value']:.3f}"
    rival = "" if wrong is None else f", wrong audio {100 * wrong['recall_at_1']['value']:.0f} %"
    return (
        f"neighbours of the other kind: {100 * mixing['value']:.0f} % "
        f"(mixed: {100 * mixing['chance']:.0f} %){nearer}\n"
        f"speech finds its own text: {100 * recall['value']:.0f} % of {numbers['clips']} "
        f"(chance {100 * recall['chance']:.1f} %{rival})"
    )


def states_table(content: Mapping[str, Any]) -> Table:
    """The numbers of states.json for a terminal."""
    from rich.table import Table
    from rich.text import Text

    first = next(iter(content["systems"].values()))["before"]
    sheet = Table(
        title=f"speech and text states of {first['clips']} clips, {first['texts']} different texts",
        caption="95 % intervals over speakers; centred: less the mean of its kind; "
        "wrong audio: the same captions, but another clip is heard",
    )
    sheet.add_column("system")
    sheet.add_column("where")
    for name, title in TITLES.items():
        chance = "" if name == "pair_gap" else f" (chance {first[name]['chance']:.3f})"
        sheet.add_column(title + chance, justify="right")
    for name, system in content["systems"].items():
        sheet.add_section()
        for row, title in ROWS.items():
            sheet.add_row(Text(name if row == "before" else ""), title, *_cells(system[row]))
            sheet.add_row("", "  centred", *_cells(system[row][CENTRED]))
    return sheet


def _cells(numbers: Mapping[str, Any]) -> list[str]:
    """Value and interval of each column; "–" where there is none."""
    cells = (numbers[name] for name in TITLES)
    return [
        "–" if c["value"] is None else f"{c['value']:.3f} \\[{c['low']:.2f}, {c['high']:.2f}]" for c in cells
    ]
