"""The one-line face: `Captioner.from_pretrained(DIR)("clip.wav")`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.models.checkpoints import load_checkpoint
from aligncap.models.speakers import chosen_clips, means_of_rows, stack_means
from aligncap.text.emotions import forms_outside
from aligncap.utils.distributed import ALONE, Gathered, Group
from aligncap.utils.errors import UserError

Audio = str | Path | np.ndarray


def pick_device(device: str) -> str:
    """ "auto" is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class Captioner:
    """Captions of how voices sound.

    >>> captioner = Captioner.from_pretrained("runs/quickstart/model")  # doctest: +SKIP
    >>> captioner("clip.wav")  # doctest: +SKIP
    'He sounds angry, with a loud and pressed voice.'
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto", dtype: str = "float32") -> Captioner:
        """Load a merged folder or the output of a training run.

        Args:
            dtype: "float32" or "bfloat16".

        Raises:
            UserError: no folder, or no AlignCap checkpoint in it.
        """
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype {dtype!r}: choose float32 or bfloat16")
        model: Any
        model, processor = load_for_inference(folder, getattr(torch, dtype))
        return cls(model.to(pick_device(device)), processor)

    def __call__(
        self,
        audio: Audio | Sequence[Audio],
        batch_size: int = 16,
        *,
        speakers: str | Sequence[str | None] | None = None,
        **options: Any,
    ) -> Any:
        """Caption one clip (a path, or mono samples at 16 kHz) or a list of them.

        Args:
            speakers: who speaks in each clip, or one name for all: a model that hears clips against their
                speaker's mean then takes it from these clips. None: unknown.
            options: of `transformers.GenerationMixin.generate`, such as num_beams or do_sample.

        Returns:
            A caption, or a list of captions in the order of the clips.

        Raises:
            UserError: a clip cannot be used.
        """
        if isinstance(audio, (str, Path, np.ndarray)):
            return self([audio], **options)[0]
        captions: list[str | UserError] = [""] * len(audio)
        named = [speakers] * len(audio) if speakers is None or isinstance(speakers, str) else list(speakers)
        means = self.speaker_means(audio, named)
        for index, caption in self.stream(audio, batch_size, means, **options):
            if isinstance(caption, UserError):
                raise caption
            captions[index] = caption
        return captions

    def stream(
        self,
        audio: Sequence[Audio],
        batch_size: int = 16,
        means: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, str | UserError]]:
        """Caption clips in batches of like length; (index, caption or error) in the order of finishing.

        `means` are those of `speaker_means`; `cues` what was measured in each clip, for a model that is shown
        it.
        """
        for batch in batches_by_size(audio, batch_size):
            clips, errors = self.load(audio, batch)
            yield from errors.items()
            if clips:
                own_means = None if means is None else [means[i] for i in clips]
                own_cues = None if cues is None else [cues[i] for i in clips]
                captions = self.generate(list(clips.values()), own_means, own_cues, **options)
                yield from zip(clips, captions, strict=True)

    @torch.inference_mode()
    def speaker_means(
        self,
        audio: Sequence[Audio],
        speakers: Sequence[str | None],
        batch_size: int = 8,
        *,
        wanted: Collection[str | None] | None = None,
        group: Group = ALONE,
    ) -> list[Tensor | None]:
        """Of each clip the mean frame of its speaker, from the speaker's clips among `audio`.

        None where the speaker is unknown, and for all if the model does not hear clips that way. Clips that
        cannot be read are passed over; captioning will name them.

        Args:
            wanted: the speakers that matter, by default all; the others' means are not to be used.
            group: the processes that share the work; each must call.
        """
        if not self.processor.speaker_relative:
            return [None] * len(audio)
        chosen = sorted({i for places in chosen_clips(speakers).values() for i in places})
        batches = [[chosen[i] for i in b] for b in batches_by_size([audio[i] for i in chosen], batch_size)]
        if wanted is not None:
            batches = [batch for batch in batches if any(speakers[i] in wanted for i in batch)]

        def compute(batch: Sequence[int]) -> dict[int, Tensor]:
            clips, _ = self.load(audio, batch)
            if not clips:
                return {}
            mel = self.processor.log_mel(list(clips.values())).to(self.model.device)
            pooled = self.model.model.encode_audio(**mel)
            rows = zip(clips, pooled.frames, pooled.mask, strict=True)
            return {i: f[m].float().mean(0, keepdim=True).cpu() for i, f, m in rows}

        frames = Gathered(group)
        group.share_out(frames, batches, compute, "speakers' voices")
        return means_of_rows(speakers, frames)

    def load(
        self, audio: Sequence[Audio], batch: Sequence[int]
    ) -> tuple[dict[int, np.ndarray], dict[int, UserError]]:
        """Samples of the clips at the indices of `batch`, and what is wrong with the unusable ones."""
        clips: dict[int, np.ndarray] = {}
        errors: dict[int, UserError] = {}
        for index in batch:
            item = audio[index]
            try:
                clips[index] = (
                    item
                    if isinstance(item, np.ndarray)
                    else load_audio(item, max_seconds=self.processor.max_seconds)
                )
            except UserError as error:
                errors[index] = error
        return clips, errors

    @torch.inference_mode()
    def generate(
        self,
        clips: list[np.ndarray],
        means: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Captions of clips of 16 kHz samples, in one batch; `means` and `cues` as in `stream`."""
        inputs = self.inputs(clips, means, cues)
        output = self.model.generate(**inputs, **options)
        return self.texts(output[:, inputs["input_ids"].shape[1] :])

    def naming_only(self, emotions: Iterable[str]) -> dict[str, Any]:
        """Options of `generate` under which captions name no emotion but these, for a corpus whose labels are
        known: of all other emotions' words the last token is never written.

        Raises:
            UserError: an emotion has no words; see `aligncap.text.emotions`.
        """
        words = forms_outside(emotions)
        texts = [start + form for word in words for form in (word, word.capitalize()) for start in (" ", "")]
        if not texts:
            return {}
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"bad_words_ids": [list(row) for row in dict.fromkeys(map(tuple, ids))]}

    def inputs(
        self,
        clips: list[np.ndarray],
        means: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
    ) -> Any:
        """Inputs of the model's `generate` for clips of 16 kHz samples."""
        inputs = self.processor.captioning_inputs(clips, cues)
        if means is not None and any(mean is not None for mean in means):
            like = self.model.model.multi_modal_projector.feature_mean
            inputs["speaker_means"] = stack_means(means, like.cpu())
        return inputs.to(self.model.device)

    def texts(self, tokens: Any) -> list[str]:
        """Captions of rows of token ids, in one line each."""
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def batches_by_size(audio: Sequence[Audio], batch_size: int) -> list[list[int]]:
    """Indices of clips in batches of like length, the longest first."""
    sizes = [(len(a) if isinstance(a, np.ndarray) else _file_size(a)) for a in audio]
    order = sorted(range(len(audio)), key=lambda i: -sizes[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_for_inference(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """A checkpoint with its adapter, if any, folded in: the numbers of the folder `merge` would write."""
    model: Any
    if not (Path(folder) / "adapter_config.json").is_file():
        return load_checkpoint(folder, dtype)
    model, processor = load_checkpoint(folder)
    model = model.merge_and_unload()
    # What a checkpoint holds is cast, as from_pretrained does; rotary frequencies keep their precision.
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.to(dtype)
    return model.eval(), processor


def _file_size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
