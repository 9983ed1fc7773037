"""Where speech and text lie in the LLM's spaces: mean states before it and after decoding.

*Before*: the audio tokens after the projector, and the input embeddings of what the teacher reads in their
place (who says what, P_act). *After*: the last hidden states from which the tokens of one and the same
caption are predicted, teacher forced: the student's, who hears, and the teacher's, who reads (AlignCap,
Liang, Shi & Chen 2024, its figure of the two spaces).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.data.split import choose_evenly
from aligncap.inference.captioner import Captioner, batches_by_size, pick_device
from aligncap.models.checkpoints import base_of, load_checkpoint
from aligncap.models.speakers import speaker_name
from aligncap.text.cue_report import COLOURS, OTHER_COLOUR
from aligncap.text.prompts import measured_cues, response_ids, teacher_prompt
from aligncap.utils.drawing import INK, PALE, figure, plain, png
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import atomic_open, write_json
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class States:
    """Mean states of the clips, (clips, width) each, float32.

    `after_wrong` is the student's on the same captions while it hears another clip: what of `speech_after`
    the caption alone accounts for. `teacher` says which weights read the text.
    """

    speech_before: Tensor
    text_before: Tensor
    speech_after: Tensor
    text_after: Tensor
    after_wrong: Tensor
    teacher: str


def choose_clips(manifest: Path, limit: int, seed: int) -> list[Utterance]:
    """Up to `limit` clips, emotions as even as they come.

    Raises:
        UserErrors: clips without a caption, its acoustic prompt, or anything for the teacher to read.
    """
    utterances = read_manifest(manifest)
    errors = [] if utterances else [f"{manifest}: the manifest is empty"]
    for number, u in enumerate(utterances, 1):
        if not u.captions:
            errors.append(f"{manifest}:{number}: {u.id} has no captions; run `aligncap annotate` on it")
        elif len(u.p_act) != len(u.captions):
            errors.append(f"{manifest}:{number}: {u.id} has no acoustic prompts; run `aligncap clues` on it")
        elif not ((u.transcript or "").strip() or u.p_act[0].strip()):
            errors.append(f"{manifest}:{number}: {u.id} has neither transcript nor clues: no text to compare")
    if errors:
        raise UserErrors(errors)
    return [utterances[i] for i in choose_evenly(utterances, limit, seed)]


def teacher_text(tokenizer: Any, utterance: Utterance) -> str:
    """The teacher's whole prompt for the clip's first caption."""
    return teacher_prompt(tokenizer, utterance.transcript, utterance.p_act[0], utterance.gender)


@torch.no_grad()
def collect_states(
    checkpoint: Path,
    manifest: Path,
    utterances: Sequence[Utterance],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
) -> States:
    """States of speech and text of `utterances` (of `manifest`; their first captions).

    The teacher is the checkpoint's LLM with its adapter off; of a checkpoint without an adapter it is the
    LLM as it stands, which in a merged folder is no longer the text teacher. A model that hears clips
    against their speakers takes the speakers' means from all clips of the manifest.

    Raises:
        UserError: no checkpoint, or a clip that cannot be used.
    """
    model: Any
    model, processor = load_checkpoint(checkpoint, dtype)
    model.to(pick_device(device))
    captioner = Captioner(_whole(model), processor)
    everyone = read_manifest(manifest)
    means = captioner.speaker_means(
        [audio_path(manifest, u) for u in everyone], [*map(speaker_name, everyone)]
    )
    mean_of = {u.id: mean for u, mean in zip(everyone, means, strict=True)}
    files = [audio_path(manifest, u) for u in utterances]
    heard = _shifted(len(files), seed)
    texts = [teacher_text(processor.tokenizer, u) for u in utterances]
    captions = [response_ids(processor.tokenizer, u.captions[0]) for u in utterances]
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in ("sb", "sa", "tb", "ta", "wrong")}
    for batch in track(batches_by_size(files, batch_size), None, f"states of {checkpoint.name}"):
        answers = [captions[i] for i in batch]

        def listen(clips: Sequence[int], answers: list[list[int]] = answers) -> tuple[Tensor, Tensor]:
            samples = [load_audio(files[i], max_seconds=processor.max_seconds) for i in clips]
            inputs = dict(
                captioner.inputs(
                    samples,
                    [mean_of[utterances[i].id] for i in clips],
                    [measured_cues(utterances[i].cue_words) for i in clips],
                )
            )
            part = inputs["input_ids"] == processor.audio_token_id
            return _mean_states(model, processor, inputs, part, answers)

        speech = listen(batch)
        wrong = listen([heard[i] for i in batch])
        inputs, part = _teacher_inputs(processor.tokenizer, [texts[i] for i in batch])
        with _adapter_off(model):
            text = _mean_states(model, processor, inputs, part, answers)
        for name, states in zip(rows, (*speech, *text, wrong[1]), strict=True):
            rows[name].update(zip(batch, states, strict=True))
    whole = [torch.stack([found[i] for i in range(len(files))]) for found in rows.values()]
    speech_before, speech_after, text_before, text_after, after_wrong = whole
    teacher = "adapter off" if isinstance(model, PeftModel) else "the same weights"
    return States(speech_before, text_before, speech_after, text_after, after_wrong, teacher)


def _shifted(number: int, seed: int) -> list[int]:
    """For each clip another one: a random cyclic shift of a random order."""
    order = list(range(number))
    Random(seed).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    return [after[i] for i in range(number)]


def _whole(model: Any) -> Any:
    """The AlignCap model, its adapter, if any, in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _adapter_off(model: Any) -> AbstractContextManager[Any]:
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def _teacher_inputs(tokenizer: Any, prompts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """The teacher's prompts, left-padded, and a bool mask of what stands for the clip in them."""
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    frame = tokenizer(teacher_prompt(tokenizer, None, ""), add_special_tokens=False)["input_ids"]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    attention, part = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, own in enumerate(rows):
        start, end = _between(own, frame)
        pad = longest - len(own)
        ids[row, pad:] = torch.tensor(own)
        attention[row, pad:] = 1
        part[row, pad + start : pad + end] = True
    return {"input_ids": ids, "attention_mask": attention}, part


def _between(ids: Sequence[int], frame: Sequence[int]) -> tuple[int, int]:
    """Start and end of what `ids` holds between the beginning and the end that it shares with `frame`.

    >>> _between([1, 2, 7, 8, 3], [1, 2, 3])
    (2, 4)
    """
    room = min(len(ids) - 1, len(frame))
    start = next((i for i in range(room) if ids[i] != frame[i]), room)
    room -= start
    tail = next((i for i in range(room) if ids[-1 - i] != frame[-1 - i]), room)
    return start, len(ids) - tail


def _mean_states(
    model: Any, processor: Any, inputs: dict[str, Tensor], part: Tensor, answers: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Mean input embedding over `part` of the prompt and mean last state over the answer, (batch, width).

    The state at position i predicts token i + 1: the answer's states start at the prompt's last token.
    """
    core = _whole(model).model
    device = core.get_input_embeddings().weight.device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    prompt, longest = inputs["input_ids"].shape[1], max(map(len, answers))
    ids = torch.full((len(answers), longest), processor.tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    answered = torch.zeros(len(answers), prompt + longest, dtype=torch.bool)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer)
        attention[row, : len(answer)] = 1
        answered[row, prompt - 1 : prompt - 1 + len(answer)] = True
    inputs = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], ids.to(device)], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], attention.to(device)], 1),
    }
    seen: dict[str, Tensor] = {}

    def keep(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["embeddings"] = kwargs["inputs_embeds"]

    hook = core.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        last = core(**inputs, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    return _mean(seen["embeddings"][:, :prompt], part), _mean(last, answered)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked positions, (batch, width), float32 on the CPU."""
    weight = mask[..., None].to(states.device, torch.float32)
    return ((states.float() * weight).sum(1) / weight.sum(1)).cpu()


Floats = NDArray[np.float64]
TITLES = {
    "mixing": "neighbours of the other modality",
    "pair_gap": "own pair's cosine less the others'",
    "recall_at_1": "speech finds its own text",
    "emotion_at_1": "speech finds a text of its emotion",
}
NEIGHBOURS = 10


def state_numbers(
    speech: Tensor,
    text: Tensor,
    *,
    texts: Sequence[str],
    emotions: Sequence[str | None],
    speakers: Sequence[str | None],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mixing, pair gap and retrieval of n pairs of states (n, width), by cosine.

    mixing: share of the other modality among the ten nearest of all other states, over both modalities;
    `chance` is its value when they are fully mixed, n / (2n - 1).
    pair_gap: cosine of a clip's speech and text less its mean cosine with other clips' texts.
    recall_at_1: share of clips whose nearest text is their own (same words: the same text); emotion_at_1:
    whose nearest text is of a clip with their label.

    Args:
        texts: what the teacher read of each clip; clips that share it are one and the same answer.

    Returns:
        {"clips", "texts", name: {"value", "low", "high", "chance"}}: 95 % intervals by resampling speakers,
        clips where speakers are unknown or one; None for what cannot be measured.
    """
    count = len(texts)
    speech, text = (F.normalize(states.double(), dim=-1) for states in (speech, text))
    across = (speech @ text.T).numpy()
    groups = np.unique(np.array(texts), return_inverse=True)[1]
    same_text = groups[:, None] == groups[None, :]
    labels = np.array([e or "" for e in emotions])
    known = labels != ""
    same_label = (labels[:, None] == labels[None, :]) & known[:, None]
    nearest = across.argmax(1)
    everyone = np.arange(count)
    others = (~same_text).sum(1)
    mean_other = np.where(~same_text, across, 0).sum(1) / np.maximum(others, 1)
    gap = np.where(others > 0, np.diag(across) - mean_other, np.nan)
    values: dict[str, tuple[Floats, float]] = {
        "mixing": (_mixing(torch.cat([speech, text]), count), count / (2 * count - 1)),
        "pair_gap": (gap, 0.0),
        "recall_at_1": (same_text[everyone, nearest].astype(float), float(same_text.mean())),
        "emotion_at_1": (
            np.where(known, same_label[everyone, nearest], np.nan).astype(float),
            float(same_label[known].mean()) if known.any() else 0.0,
        ),
    }
    clusters = _clusters(speakers)
    numbers: dict[str, Any] = {"clips": count, "texts": int(groups.max()) + 1}
    for name, (each, chance) in values.items():
        numbers[name] = _with_interval(each, clusters, resamples, seed) | {"chance": chance}
    return numbers


def _mixing(states: Tensor, count: int) -> Floats:
    """Of each clip's two states, the mean share of the other modality among their neighbours, (count,)."""
    near = states @ states.T
    near.fill_diagonal_(-torch.inf)
    nearest = near.topk(min(NEIGHBOURS, len(states) - 1)).indices
    is_text = torch.arange(len(states)) >= count
    other = (is_text[nearest] != is_text[:, None]).double().mean(1)
    return ((other[:count] + other[count:]) / 2).numpy()


def _clusters(speakers: Sequence[str | None]) -> NDArray[np.int64]:
    """A number for each speaker; clips of an unknown one stand for themselves, as do those of a lone one."""
    if len({s for s in speakers if s}) < 2:
        return np.arange(len(speakers))
    names = [s or f"clip {i}" for i, s in enumerate(speakers)]
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _with_interval(
    each: Floats, clusters: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, float | None]:
    """Mean of the values that are numbers, and its percentile interval over drawn clusters."""
    good = ~np.isnan(each)
    if not good.any():
        return {"value": None, "low": None, "high": None}
    number = int(clusters.max()) + 1
    sums = np.zeros((number, 2))
    np.add.at(sums, clusters[good], np.column_stack([each[good], np.ones(good.sum())]))
    drawn = np.random.default_rng(seed).integers(0, number, (resamples, number))
    total = sums[drawn].sum(1)
    total = total[total[:, 1] > 0]
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return {"value": float(each[good].mean()), "low": float(low), "high": float(high)}


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
