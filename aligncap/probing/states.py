"""Where speech and text lie in the LLM's spaces: mean states before it and after decoding.

*Before*: the audio tokens after the projector, and the input embeddings of what the teacher reads in their
place (who says what, P_act). *After*: the last hidden states from which the tokens of one and the same
caption are predicted, teacher forced: the student's, who hears, and the teacher's, who reads (AlignCap,
Liang, Shi & Chen 2024, its figure of the two spaces).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.errors import Faults
from aligncap.manifest import Utterance, audio_path, read_manifest
from aligncap.models.captioner import Captioner, batches_by_size, pick_device
from aligncap.models.checkpoints import load_checkpoint
from aligncap.models.speakers import speaker_name
from aligncap.progress import track
from aligncap.prompts.acoustic import measured_cues
from aligncap.prompts.templates import response_ids, teacher_prompt
from aligncap.splits import choose_evenly


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
        Faults: clips without a caption, its acoustic prompt, or anything for the teacher to read.
    """
    utterances = read_manifest(manifest)
    faults = [] if utterances else [f"{manifest}: the manifest is empty"]
    for number, u in enumerate(utterances, 1):
        if not u.captions:
            faults.append(f"{manifest}:{number}: {u.id} has no captions; run `aligncap annotate` on it")
        elif len(u.p_act) != len(u.captions):
            faults.append(f"{manifest}:{number}: {u.id} has no acoustic prompts; run `aligncap clues` on it")
        elif not ((u.transcript or "").strip() or u.p_act[0].strip()):
            faults.append(f"{manifest}:{number}: {u.id} has neither transcript nor clues: no text to compare")
    if faults:
        raise Faults(faults)
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
