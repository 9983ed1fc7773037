"""Memory of a training step by formula, and which launch configuration to choose.

    python scripts/memory.py                               # the table of docs/scaling.md
    python scripts/memory.py --device-gib 24 --batch 4
    python scripts/memory.py --llm FOLDER                  # any Llama-like LLM by its config.json

docs/scaling.md explains each term; scripts/bench_memory.py holds them against measured runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


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


# Published configurations.
SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 49152, True),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 49152, True),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 151936, True),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 128256, True),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128256, True),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128256, False),
    "Qwen2.5-14B": Shape(48, 5120, 13824, 40, 8, 152064, False),
    "Qwen2.5-32B": Shape(64, 5120, 27648, 40, 8, 152064, False),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128256, False),
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
    """Bytes on one device at the peak of a distillation step, by what takes them.

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
    return {
        "weights": _kept(shape, encoder, half and shards == 1) / shards,
        "copies": copies,
        "trained": 16 * trained / shards,
        "activations": activations,
        "logits": 4 * size * predicted * shape.vocab,
        "softmaxes": 5 * 4 * min(predicted, 32) * shape.vocab,
    }


def _kept(shape: Shape, encoder: int, halved: bool) -> float:
    """Bytes of frozen weights; unsharded in mixed precision, linear layers are kept in bfloat16."""
    linear = shape.weights - shape.table + encoder
    return 4 * shape.table + (2 if halved else 4) * linear


def peak(shape: Shape, **how: Any) -> float:
    """Bytes on one device at the peak of a run: of a step, or before it, of the float32 weights alone.

    Unsharded weights come to the device in float32; sharded ones are spread from the host.
    """
    whole = 4 * (shape.weights + how.get("encoder", 0)) if how.get("shards", 1) == 1 else 0
    return max(sum(terms(shape, **how).values()), whole)


def choice(shape: Shape, capacity: float, **how: Any) -> str:
    """The simplest configuration whose peak is below nine tenths of `capacity` bytes a device."""
    room = 0.9 * capacity
    for text, options in (
        ("gpu1 or gpu8", {}),
        ("gpu8, checkpointing", {"checkpointing": True}),
        *((f"fsdp2, {8 * n} GPUs", {"shards": 8 * n}) for n in (1, 2, 4)),
        *(
            (f"fsdp2, {8 * n} GPUs, checkpointing", {"shards": 8 * n, "checkpointing": True})
            for n in (1, 2, 4)
        ),
    ):
        if peak(shape, **(how | options)) <= room:
            return text
    return "more GPUs or a smaller batch"


def read_shape(folder: Path) -> Shape:
    c = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kv_heads = c.get("num_key_value_heads", c["num_attention_heads"])
    return Shape(
        *(c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]),
        *(kv_heads, c["vocab_size"], bool(c.get("tie_word_embeddings", False))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", type=Path, help="folder with a config.json")
    parser.add_argument("--batch", type=int, default=8, help="rows a device")
    parser.add_argument("--length", type=int, default=128, help="tokens of a student's row")
    parser.add_argument("--response", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--device-gib", type=float, nargs="+", default=[24, 80])
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    a = parser.parse_args()
    shapes = {a.llm.name: read_shape(a.llm)} if a.llm else SHAPES
    how: dict[str, Any] = {
        "batch": a.batch,
        "length": a.length,
        "response": a.response,
        "half": not a.float32,
    }
    how |= {"encoder": 20_000_000, "projector": 2_000_000}
    print(f"GiB a device: {a.batch} rows of {a.length} tokens, {a.response} predicted, ", end="")
    print("float32" if a.float32 else "bfloat16")
    names = list(terms(SHAPES["SmolLM2-135M"], **how))
    heads = [*names, "one GPU", "fsdp2 8", "fsdp2 16", "host"]
    print(f"{'':14}" + "".join(f"{h:>12}" for h in heads))
    for name, shape in shapes.items():
        one = terms(shape, **how)
        sums = [peak(shape, **how, shards=n) for n in (1, 8, 16)]
        cells = [*one.values(), *sums, 4 * shape.weights]
        print(f"{name:14}" + "".join(f"{value / GIB:12.2f}" for value in cells))
    print("host: float32 weights that each process reads before they are sharded\n")
    for gib in a.device_gib:
        for name, shape in shapes.items():
            print(f"{name:14} on GPUs of {gib:g} GiB: {choice(shape, gib * GIB, **how)}")


if __name__ == "__main__":
    main()
