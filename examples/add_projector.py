"""Add a projector and build a model with it: `python examples/add_projector.py runs/linear`.

The folder is an untrained model. Whoever loads it must import this module first: the class is found by name.
"""

import sys

from torch import Tensor, nn

from aligncap import AlignCapConfig
from aligncap.models.checkpoints import build
from aligncap.models.projectors import PROJECTORS, Projector


class LinearProjector(Projector):
    """Stacked encoder frames through one matrix: (clips, frames, width) -> (clips, tokens, text width)."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.linear = nn.Linear(config.audio_width * config.stack_size, text_width)

    def forward(self, frames: Tensor, mask: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        frames = self.mix_layers(self.standardise(frames.float()))
        stacked, mask = self.stack(frames * mask[..., None], mask)
        return self.linear(stacked), mask


PROJECTORS["linear"] = LinearProjector


def main(out: str, encoder: str = "whisper-base", llm: str = "smollm2-135m-instruct") -> None:
    model, processor = build(encoder, llm, encoder_layer="mix", projector_type="linear", summary_token=False)
    model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1])
