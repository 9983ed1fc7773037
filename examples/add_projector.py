"""Add a projector and build a model with it: `python examples/add_projector.py runs/mean`.

The folder is an untrained model. Whoever loads it must import this module first: the class is found by name.
"""

import sys

from torch import Tensor, nn

from aligncap import AlignCapConfig
from aligncap.models.build import build
from aligncap.models.encoders import pool_frames
from aligncap.models.projectors import PROJECTORS, Projector


class MeanProjector(Projector):
    """The mean of every `stack_size` frames through one matrix, (clips, frames, width) to (…, text width)."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.linear = nn.Linear(config.audio_width, text_width)

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        means, mask = pool_frames(frames, mask, self.stack_size)
        return self.linear(means), mask


PROJECTORS["mean"] = MeanProjector


def main(out: str, encoder: str = "whisper-base", llm: str = "smollm2-135m-instruct") -> None:
    model, processor = build(encoder, llm, encoder_layer="mix", projector_type="mean", summary_token=False)
    model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1])
