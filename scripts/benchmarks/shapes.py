"""Shapes of language models and speech encoders, and what follows by arithmetic: weights, memory, operations.

The formula of docs/scaling.md stands here alone; `memory.py`, `gpu.py` and `plan_run.py` use it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What of a decoder's config.json counts (Llama, Qwen2, SmolLM2: gated MLP, grouped attention)."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def layer(self) -> int:
        """Weights of the linear maps of a layer."""
        return self.width * (2 * self.width + 2 * self.kv_width + 3 * self.inner)

    @property
    def table(self) -> int:
        return self.vocab * self.width

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.table * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """LoRA on the query and value projections."""
        return self.layers * rank * (3 * self.width + self.kv_width)

    def flops(self, rows: int, length: float, read: float = 0.0) -> float:
        """Multiplications and additions of the layers' forward pass, without head and adapters.

        Args:
            length: tokens of a row; read: tokens already in the cache of keys and values.
        """
        linear = 2 * self.layers * self.layer * rows * length
        return linear + 4 * self.layers * self.width * rows * length * (length + read)

    def head(self, tokens: float) -> float:
        """Of the language-model head on so many tokens."""
        return 2.0 * self.table * tokens

    def step(self, rows: int, length: float, response: float, rank: int = 8) -> float:
        """Of a training step with adapters, logits at response positions: forward, and backward to inputs.

        Frozen matrices cost as much backwards as forwards; adapters and attention twice as much.
        """
        linear = 2 * self.layers * self.layer * rows * length
        rest = self.flops(rows, length) - linear + 2 * self.adapter(rank) * rows * length
        return 2 * linear + 3 * rest + 2 * self.head(rows * response)


# Published configurations.
SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 49152, True),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 49152, True),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 151936, True),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 151936, True),
    "Qwen2.5-3B": Shape(36, 2048, 11008, 16, 2, 151936, True),
    "Qwen2.5-7B": Shape(28, 3584, 18944, 28, 4, 152064, False),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 128256, True),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128256, True),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128256, False),
    "Qwen2.5-14B": Shape(48, 5120, 13824, 40, 8, 152064, False),
    "Qwen2.5-32B": Shape(64, 5120, 27648, 40, 8, 152064, False),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128256, False),
}


@dataclass(frozen=True)
class Encoder:
    """What of a Whisper's config.json counts."""

    layers: int
    width: int
    inner: int
    heads: int
    mels: int

    @property
    def weights(self) -> int:
        """Of layers, convolutions and positions."""
        layer = self.width * (4 * self.width + 2 * self.inner)
        return self.layers * layer + 3 * self.width * (self.mels + self.width) + 1500 * self.width

    def flops(self, seconds: float) -> float:
        """Multiplications and additions for a clip, the second of silence after it included."""
        frames = 50 * (seconds + 1)
        layer = self.width * (4 * self.width + 2 * self.inner)
        convolutions = 6 * self.width * (2 * self.mels + self.width) * frames
        return convolutions + self.layers * (2 * layer * frames + 4 * self.width * frames**2)


ENCODERS = {
    "whisper-base": Encoder(6, 512, 2048, 8, 80),
    "whisper-small": Encoder(12, 768, 3072, 12, 80),
    "whisper-medium": Encoder(24, 1024, 4096, 16, 80),
    "whisper-large-v3": Encoder(32, 1280, 5120, 20, 128),
}


def terms(
    shape: Shape,
    *,
    batch: int,
    length: int,
    response: int,
    half: bool,
    shards: int = 1,
    checkpointing: bool = False,
    eager: bool = False,
    rank: int = 8,
    encoder: int = 0,
    projector: int = 0,
) -> dict[str, float]:
    """Bytes on one device at the peak of a distillation step, by what takes them (docs/scaling.md).

    Args:
        batch: rows on the device; length: tokens of a student's row; response: those that are predicted.
        half: compute in bfloat16; embeddings stay float32, sharded weights too.
        shards: devices that FSDP2 spreads weights over.
        eager: attention keeps its scores, as training in bfloat16 on a CPU does.
        rank: of LoRA; encoder, projector: their numbers of weights.
    """
    size = 2 if half else 4
    tokens, predicted = batch * length, batch * response
    trained = shape.adapter(rank) + projector
    if shards > 1:
        # The layer at work and the next, gathered in the precision of computing; the tail stays gathered.
        copies = size * (2 * shape.layer + shape.table)
    else:
        # A head that is the embedding's table, kept in float32, has a copy of its own.
        copies = size * shape.table if half and shape.tied else 0
    one = tokens * (8 * shape.width + (2 * (size + 1) + 4 * size) * shape.width + 3 * size * shape.inner)
    one += eager * tokens * length * shape.heads * (4 + size)  # the softmax in float32, and as it is read
    activations = shape.layers * tokens * 4 * shape.width + one if checkpointing else shape.layers * one
    # Frozen weights: unsharded in mixed precision, linear layers are kept in bfloat16.
    linear = shape.weights - shape.table + encoder
    kept = 4 * shape.table + (2 if half and shards == 1 else 4) * linear
    return {
        "weights": kept / shards,
        "copies": copies,
        "trained": 16 * trained / shards,
        "activations": activations,
        "logits": 4 * size * predicted * shape.vocab,
        "softmaxes": 5 * 4 * min(predicted, 32) * shape.vocab,
    }


def peak(shape: Shape, **how: Any) -> float:
    """Bytes on one device at the peak of a run: of a step, or before it, of the float32 weights alone.

    Unsharded weights come to the device in float32; sharded ones are spread from the host.
    """
    whole = 4 * (shape.weights + how.get("encoder", 0)) if how.get("shards", 1) == 1 else 0
    return max(sum(terms(shape, **how).values()), whole)


def choice(shape: Shape, capacity: float, **how: Any) -> str:
    """The simplest configuration whose peak is below nine tenths of `capacity` bytes a device."""
    fsdp2 = [(8 * n, f"fsdp2, {8 * n} GPUs") for n in (1, 2, 4)]
    plain = [(1, "gpu1 or gpu8", False), (1, "gpu8, checkpointing", True), *((*one, False) for one in fsdp2)]
    for shards, name, checkpointing in (*plain, *((n, f"{x}, checkpointing", True) for n, x in fsdp2)):
        if peak(shape, **(how | {"shards": shards, "checkpointing": checkpointing})) <= 0.9 * capacity:
            return name
    return "more GPUs or a smaller batch"


# The names of a shape's numbers in a config.json.
KEYS = {"layers": "num_hidden_layers", "width": "hidden_size", "inner": "intermediate_size"}
KEYS |= {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
KEYS |= {"vocab": "vocab_size", "tied": "tie_word_embeddings"}


def read_shape(folder: Path) -> Shape:
    """The shape that a folder's config.json describes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    given = {"num_key_value_heads": config["num_attention_heads"], "tie_word_embeddings": False} | config
    return Shape(**{name: given[key] for name, key in KEYS.items()})
