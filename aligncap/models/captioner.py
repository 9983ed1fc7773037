"""The one-line face: `Captioner.from_pretrained(DIR)("clip.wav")`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aligncap.audio.files import load_audio
from aligncap.errors import UserError
from aligncap.models.checkpoints import load_checkpoint

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

    def __call__(self, audio: Audio | Sequence[Audio], batch_size: int = 16, **options: Any) -> Any:
        """Caption one clip (a path, or mono samples at 16 kHz) or a list of them.

        Args:
            options: of `transformers.GenerationMixin.generate`, such as num_beams or do_sample.

        Returns:
            A caption, or a list of captions in the order of the clips.

        Raises:
            UserError: a clip cannot be used.
        """
        if isinstance(audio, (str, Path, np.ndarray)):
            return self([audio], **options)[0]
        captions: list[str | UserError] = [""] * len(audio)
        for index, caption in self.stream(audio, batch_size, **options):
            if isinstance(caption, UserError):
                raise caption
            captions[index] = caption
        return captions

    def stream(
        self, audio: Sequence[Audio], batch_size: int = 16, **options: Any
    ) -> Iterator[tuple[int, str | UserError]]:
        """Caption clips in batches of like length; (index, caption or error) in the order of finishing."""
        for batch in batches_by_size(audio, batch_size):
            clips, faults = self.load(audio, batch)
            yield from faults.items()
            if clips:
                yield from zip(clips, self.generate(list(clips.values()), **options), strict=True)

    def load(
        self, audio: Sequence[Audio], batch: Sequence[int]
    ) -> tuple[dict[int, np.ndarray], dict[int, UserError]]:
        """Samples of the clips at the indices of `batch`, and what is wrong with the unusable ones."""
        clips: dict[int, np.ndarray] = {}
        faults: dict[int, UserError] = {}
        for index in batch:
            item = audio[index]
            try:
                clips[index] = (
                    item
                    if isinstance(item, np.ndarray)
                    else load_audio(item, max_seconds=self.processor.max_seconds)
                )
            except UserError as error:
                faults[index] = error
        return clips, faults

    @torch.inference_mode()
    def generate(self, clips: list[np.ndarray], **options: Any) -> list[str]:
        """Captions of clips of 16 kHz samples, in one batch."""
        inputs = self.processor.captioning_inputs(clips).to(self.model.device)
        output = self.model.generate(**inputs, **options)
        return self.texts(output[:, inputs["input_ids"].shape[1] :])

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
