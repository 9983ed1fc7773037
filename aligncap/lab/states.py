"""`aligncap lab states`: where speech and text lie in the LLM's spaces, before it and after decoding.

*Before*: the audio tokens after the projector, and the input embeddings of what the teacher reads in their
place (transcript and P_act). *After*: the last hidden states from which the tokens of one and the same
caption are predicted, teacher forced: the student's, who hears, and the teacher's, who reads (AlignCap,
Liang, Shi & Chen 2024, its figure of the two spaces).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, read_manifest, refuse_answers
from aligncap.data.split import choose_evenly
from aligncap.inference.captioner import Captioner, batches_by_size, pick_device
from aligncap.inference.jobs import Job, job_of, with_condition
from aligncap.lab.state_report import NEIGHBOURS, States, numbers_of, states_picture, states_table
from aligncap.models.checkpoints import is_adapter, load_checkpoint, weight_files
from aligncap.text.prompts import response_ids, teacher_prompt
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import atomic_open, write_json
from aligncap.utils.options import Config, NaturalInt, PositiveInt, option
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record

FEWEST = 10  # clips


@dataclass
class StatesConfig(Config):
    """Pictures (t-SNE) and numbers of speech and text states, a row a model.

    Examples:
        aligncap lab states --model CL=runs/cl/base distill=runs/distill --manifest test.jsonl --out states
    """

    model: list[str] = option(help="[NAME=]CKPT: folders of training runs, by name.")
    manifest: str = option(help="Manifest with captions and clues.")
    out: str = option(help="Folder for states.png, states_centred.png and states.json.")
    limit: PositiveInt = option(200, "Clips, drawn so that emotions come as even as they can.")
    batch_size: PositiveInt = option(8, "Clips at a time.")
    dtype: Literal["float32", "bfloat16"] = option("float32", "Precision of the models.")
    device: str = option("auto", "Where the models run: auto, cpu, cuda, cuda:1.")
    seed: NaturalInt = option(0, "Seed of the choice of clips, of wrong audio and of t-SNE.")

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """Name and folder of each model."""
        words = [word.rpartition("=") for word in self.model]
        return [(name or Path(folder).name, Path(folder)) for name, _, folder in words]

    def own_errors(self) -> list[str]:
        names = [name for name, _ in self.folders]
        taken = [(n, f) for place, (n, f) in enumerate(self.folders) if n in names[:place]]
        return [f"model={folder}: the name {name} is taken; write ANOTHER={folder}" for name, folder in taken]


def run_states(config: StatesConfig) -> int:
    """Write states.png, states_centred.png, states.json and run.json; print the numbers.

    Speech and text keep a constant distance whatever else they share (the modality gap, Liang et al. 2022),
    which hides all else from neighbours and t-SNE; the second picture is of states less the mean of their
    kind.

    Raises:
        UserError: too few clips, or a checkpoint or clip that cannot be used.
    """
    out = Path(config.out)
    models = dict(config.folders)
    utterances = choose_clips(Path(config.manifest), config.limit, config.seed)
    if len(utterances) < FEWEST:
        raise UserError(
            f"{config.manifest}: {len(utterances)} clips; a picture needs {FEWEST} or more, 200 are usual"
        )
    states = {name: collect_states(folder, config, utterances) for name, folder in models.items()}
    systems = {
        name: {
            "model": str(models[name]),
            "teacher": "adapter off" if is_adapter(models[name]) else "the same weights",
            **numbers_of(found, utterances),
        }
        for name, found in states.items()
    }
    for name, is_centred in (("states", False), ("states_centred", True)):
        with atomic_open(out / f"{name}.png", "wb") as file:
            file.write(states_picture(states, systems, utterances, config.seed, is_centred))
    content = {"manifest": config.manifest, "seed": config.seed, "neighbours": NEIGHBOURS}
    write_json(out / "states.json", content | {"systems": systems})
    weights = sorted({file for folder in models.values() for file in weight_files(folder)})
    write_run_record(out, "states", asdict(config), [config.manifest, *weights], seed=config.seed)
    Console().print(states_table(systems))
    print(f"pictures: {out}/states.png, {out}/states_centred.png")
    return 0


def choose_clips(manifest: Path, limit: int, seed: int) -> list[Utterance]:
    """Up to `limit` clips, emotions as even as they come.

    Raises:
        UserErrors: clips without a caption, its acoustic prompt, or anything for the teacher to read.
    """
    utterances = read_manifest(manifest)
    refuse_answers(manifest, utterances)
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


@torch.no_grad()
def collect_states(checkpoint: Path, config: StatesConfig, utterances: Sequence[Utterance]) -> States:
    """Mean states of speech and of text of `utterances` (of the manifest; their first captions).

    The teacher is the checkpoint's LLM with its adapter off; of a checkpoint without an adapter it is the
    LLM as it stands, which in a merged folder is no longer the text teacher. Each clip is heard alone.

    Returns:
        (speech, text) "before" the LLM, "after" decoding, and "after_wrong": on the same captions while the
        student hears another clip (what the caption alone accounts for). Each (clips, width), float32.

    Raises:
        UserError: no checkpoint, or a clip that cannot be used.
    """
    model: Any
    model, processor = load_checkpoint(checkpoint, getattr(torch, config.dtype))
    model.to(pick_device(config.device))
    adapted = isinstance(model, PeftModel)
    captioner = Captioner(model, processor)
    jobs = [job_of(config.manifest, u) for u in utterances]
    wrong = with_condition(jobs, utterances, "wrong", config.seed)
    texts = [teacher_prompt(processor.tokenizer, u.transcript, u.p_act[0], u.gender) for u in utterances]
    captions = [response_ids(processor.tokenizer, u.captions[0]) for u in utterances]

    def listen(heard: Sequence[Job], answers: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        samples = [load_audio(job.path, max_seconds=processor.max_seconds) for job in heard]
        inputs = captioner.inputs(samples, cues=[job.cues for job in heard])
        part = inputs["input_ids"] == processor.audio_token_id
        return _mean_states(captioner, dict(inputs), part, answers)

    found: dict[int, tuple[Tensor, ...]] = {}
    batches = batches_by_size([job.path for job in jobs], config.batch_size)
    for batch in track(batches, None, f"states of {checkpoint.name}"):
        answers = [captions[i] for i in batch]
        speech = listen([jobs[i] for i in batch], answers)
        other = listen([wrong[i] for i in batch], answers)
        inputs, part = _teacher_inputs(processor.tokenizer, [texts[i] for i in batch])
        with model.disable_adapter() if adapted else nullcontext():
            text = _mean_states(captioner, inputs, part, answers)
        rows = zip(speech[0], text[0], speech[1], text[1], other[1], strict=True)
        found.update(zip(batch, rows, strict=True))
    columns = zip(*(found[i] for i in range(len(jobs))), strict=True)
    speech_before, text_before, speech_after, text_after, after_wrong = map(torch.stack, columns)
    after, wrong_audio = (speech_after, text_after), (after_wrong, text_after)
    return {"before": (speech_before, text_before), "after": after, "after_wrong": wrong_audio}


def _teacher_inputs(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """The teacher's prompts, left-padded, and a bool mask of what stands for the clip in them."""
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    frame = tokenizer(teacher_prompt(tokenizer, None, ""), add_special_tokens=False)["input_ids"]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    part = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, ids in enumerate(rows):
        pad = part.shape[1] - len(ids)
        start, end = _between(ids, frame)
        part[row, pad + start : pad + end] = True
    return dict(inputs), part


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
    captioner: Captioner, inputs: Mapping[str, Tensor], part: Tensor, answers: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Mean input embedding over `part` of the prompt and mean last state over the answer, (batch, width).

    The state at position i predicts token i + 1: the answer's states start at the prompt's last token.
    """
    core, device = captioner.model.model, captioner.model.device
    said = captioner.processor.tokenizer.pad(
        {"input_ids": [list(answer) for answer in answers]}, padding_side="right", return_tensors="pt"
    )
    joined = {n: torch.cat([inputs[n].to(device), said[n].to(device)], 1) for n in said}
    rest = {name: tensor.to(device) for name, tensor in inputs.items() if name not in joined}
    prompt = part.shape[1]
    answered = torch.cat([torch.zeros_like(part, device="cpu"), said["attention_mask"].bool()], 1)
    seen: dict[str, Tensor] = {}

    def keep(_module: torch.nn.Module, _args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen["embeddings"] = kwargs["inputs_embeds"]

    hook = core.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        last = core(**rest, **joined, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    # shifted by one: the state before a token predicts it
    return _mean(seen["embeddings"][:, :prompt], part), _mean(last[:, :-1], answered[:, 1:])


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked positions, (batch, width), float32 on the CPU."""
    weight = mask[..., None].to(states.device, torch.float32)
    return ((states.float() * weight).sum(1) / weight.sum(1)).cpu()
