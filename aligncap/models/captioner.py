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
        model, processor = load_checkpoint(folder, getattr(torch, dtype))
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
        sizes = [(len(a) if isinstance(a, np.ndarray) else _file_size(a)) for a in audio]
        order = sorted(range(len(audio)), key=lambda i: -sizes[i])
        for start in range(0, len(order), batch_size):
            clips: dict[int, np.ndarray] = {}
            for index in order[start : start + batch_size]:
                item = audio[index]
                try:
                    clips[index] = (
                        item
                        if isinstance(item, np.ndarray)
                        else load_audio(item, max_seconds=self.processor.max_seconds)
                    )
                except UserError as error:
                    yield index, error
            if clips:
                yield from zip(clips, self.generate(list(clips.values()), **options), strict=True)

    @torch.inference_mode()
    def generate(self, clips: list[np.ndarray], **options: Any) -> list[str]:
        """Captions of clips of 16 kHz samples, in one batch."""
        inputs = self.processor.captioning_inputs(clips).to(self.model.device)
        output = self.model.generate(**inputs, **options)
        texts = self.processor.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [" ".join(text.split()) for text in texts]


def _file_size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
