"""What a run will take, stage by stage, before it is started: time, memory, disk, network; what limits it.

    python scripts/plan_run.py Qwen2.5-7B 1000 8                    # an LLM, hours of speech, GPUs
    python scripts/plan_run.py path/to/llm 100 1 --device l4 --encoder whisper-base
    python scripts/plan_run.py --table                              # the tables of docs/scaling.md

Arithmetic over shapes (scripts/benchmarks/shapes.py) and the constants below, each with where it comes from.
`--measured runs/gpu_check/gpu.jsonl` puts what scripts/gpu_check.sh found in place of the assumed rates. Held
against measured runs on a CPU by `python scripts/benchmarks/memory.py plan` (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

from shapes import ENCODERS, SHAPES, Encoder, Shape, choice, peak, read_shape

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Device:
    """flops: of dense products in half precision; bandwidth: of its memory, bytes a second; memory: bytes."""

    flops: float
    bandwidth: float
    memory: float


# Data sheets of the makers, dense rates.
DEVICES = {
    "h100": Device(989e12, 3.35e12, 80 * GIB),
    "a100": Device(312e12, 2.0e12, 80 * GIB),
    "l4": Device(121e12, 0.3e12, 24 * GIB),
    "v100": Device(125e12, 0.9e12, 32 * GIB),
    "t4": Device(65e12, 0.32e12, 16 * GIB),
}
# name: (value, unit, where it comes from). "assumed" was not measured by us: no GPU was at hand.
CONSTANTS = {
    "attained": (0.80, "of the sheet's rate that a large product reaches", "assumed"),
    "mfu": (0.40, "of that, training steps and prefill (goal: 0.45)", "assumed"),
    "streaming": (0.60, "of the memory's bandwidth, decoding", "assumed"),
    "nvlink": (300 * GB, "bytes a second between GPUs of a host", "assumed"),
    "network": (25 * GB, "bytes a second between hosts, each GPU", "assumed"),
    "disk": (2 * GB, "bytes a second read by a host", "assumed; --disk"),
    "cores": (64, "processor cores of a host", "assumed; --cores"),
    "audio": (32_000, "bytes a second of speech, 16-bit at 16 kHz", "exact"),
    "row": (1_600, "bytes of a manifest's row with five captions", "measured, 240 clips of RAVDESS"),
    "prepare": (
        0.0007,
        "core seconds a second of speech",
        "measured, aligncap prepare, 240 clips, files in memory",
    ),
    "annotate": (0.067, "core seconds a clip of 3.7 s: cues, five captions", "measured, 60 clips less 10"),
    "clues": (0.002, "core seconds a caption", "measured, 300 captions less 50"),
    "rubric": (0.001, "core seconds a caption, fluency not counted", "measured, 1,200 captions less 100"),
    "log_mel": (0.0008, "core seconds a second of speech, decoding included", "measured, 128 bands"),
}


def constant(name: str) -> float:
    return CONSTANTS[name][0]


MOST, FITTED = 20e9, 8192  # bytes of frames, and clips that are encoded in any case, as in training


@dataclass(frozen=True)
class Work:
    """What is to be done: of LLM and encoder, hours of speech in clips, their captions, and the GPUs.

    clip: seconds of a clip. captions: learnt of each clip, in one pass. prompt: tokens that the student reads
    beside audio and response; teacher: tokens of transcript and P_act; response: of a caption. layers: states
    of the encoder that are kept of each frame, as float16; 0: all, as `--encoder_layer mix` reads them.
    """

    llm: Shape
    encoder: Encoder
    hours: float
    gpus: int
    device: Device
    clip: float = 5.0
    captions: int = 2
    candidates: int = 8
    batch: int = 8
    prompt: int = 40
    teacher: int = 96
    response: int = 32
    top_k: int = 64
    layers: int = 0
    cores: float = constant("cores")
    disk: float = constant("disk")
    mfu: float = constant("mfu")
    attained: float = constant("attained")

    @property
    def clips(self) -> float:
        return self.hours * 3600 / self.clip

    @property
    def frames(self) -> float:
        """Bytes of the encoder's frames of a clip, of itself and through another channel (`--augment`)."""
        states = self.layers or self.encoder.layers + 1
        return 2 * self.clip / 0.32 * self.encoder.width * states * 2

    @property
    def live(self) -> bool:
        """Whether speech is encoded in every step, since its frames would take too much (`feature_cache`)."""
        return self.clips * self.frames > MOST

    @property
    def hosts(self) -> int:
        return -(-self.gpus // 8)

    @property
    def audio(self) -> int:
        """Tokens of a clip: one for 1.28 s of it, and the summary."""
        return int(-(-self.clip // 1.28)) + 1

    @property
    def speed(self) -> float:
        """Operations a second of one GPU in training and prefill."""
        return self.device.flops * self.attained * self.mfu


@dataclass(frozen=True)
class Stage:
    """One stage: seconds that each resource needs, of which the largest counts; bytes.

    memory: of a GPU at the peak. written: kept on disk. moved: between GPUs, by each.
    """

    name: str
    seconds: dict[str, float]
    memory: float = 0.0
    written: float = 0.0
    moved: float = 0.0

    @property
    def time(self) -> float:
        return max(self.seconds.values())

    @property
    def bound(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])


def shards(work: Work) -> int:
    """Over how many GPUs the weights are spread: 1 where a step fits one GPU."""
    return 1 if peak(work.llm, **training(work, 1)) <= 0.9 * work.device.memory else work.gpus


def training(work: Work, over: int) -> dict[str, float | bool]:
    """The arguments of `shapes.terms` of a distillation step."""
    length = work.prompt + work.audio + work.response
    return {
        "batch": work.batch,
        "length": length,
        "response": work.response,
        "half": True,
        "shards": over,
        "encoder": work.encoder.weights,
        "projector": 2_000_000,
    }


def moved(work: Work, steps: float) -> float:
    """Bytes that each GPU sends in so many steps: gradients, and in shards the weights, twice."""
    if work.gpus == 1:
        return 0.0
    trained = work.llm.adapter(8) + 2_000_000
    weights = 2 * 2 * work.llm.weights if shards(work) > 1 else 0
    return steps * (2 * 4 * trained + weights) * (work.gpus - 1) / work.gpus


def trained(
    work: Work, name: str, flops: float, rows: float, audio: float, written: float, **how: int
) -> Stage:
    """A stage of training: `flops` of one row, `rows` of them, `audio` bytes read of each."""
    steps = rows / (work.batch * work.gpus)
    sent = moved(work, steps)
    line = constant("nvlink") if work.hosts == 1 else constant("network")
    need = {
        "GPUs": rows * flops / work.speed / work.gpus,
        "disk": rows * audio / work.disk / work.hosts,
        "network": sent / line,
    }
    return Stage(name, need, peak(work.llm, **(training(work, shards(work)) | how)), written, sent)  # type: ignore[arg-type]


def generated(work: Work, name: str, each: int) -> Stage:
    """A stage that writes `each` captions of every clip, 16 clips at a time."""
    llm, batch = work.llm, 16
    read = work.prompt + work.audio
    prefill = llm.flops(batch, read) + batch * work.encoder.flops(work.clip)
    kept = 2 * 2 * llm.layers * llm.kv_width * batch * each * (read + work.response)
    step = (2 * llm.weights + kept) / (work.device.bandwidth * constant("streaming"))
    compute = llm.flops(batch * each, 1, read) / work.speed
    seconds = prefill / work.speed + work.response * max(step, compute)
    need = {"GPUs": work.clips / batch / work.gpus * seconds, **heard(work)}
    rows = work.clips * each * 300
    return Stage(name, need, 2 * (llm.weights + work.encoder.weights) + kept, rows)


def heard(work: Work) -> dict[str, float]:
    """What it takes to open all clips once and make their log-mel."""
    seconds = work.hours * 3600
    return {
        "cores": seconds * constant("log_mel") / work.cores / work.hosts,
        "disk": seconds * constant("audio") / work.disk / work.hosts,
    }


def plan(work: Work) -> list[Stage]:
    """All stages, in their order."""
    llm, clips, hosts = work.llm, work.clips, work.hosts
    rows, seconds = clips * work.captions, work.hours * 3600
    cores = work.cores * hosts
    length = work.prompt + work.audio + work.response
    fitted = min(clips, FITTED, MOST / work.frames) if work.live else clips  # encoded before training
    ear = work.encoder.flops(work.clip) if work.live else 0.0
    row = work.clip * constant("audio") if work.live else work.frames / 2
    text = llm.step(1, work.teacher + work.response, work.response)
    read = llm.flops(1, work.teacher + work.response) + llm.head(work.response)
    pair = work.prompt + work.audio + 2 * work.response
    both = llm.step(1, pair, 2 * work.response) + llm.flops(1, pair) + llm.head(2 * work.response)
    student = llm.step(1, length, work.response)
    kept = rows * work.response * 4 * (2 * work.top_k + 1)
    judged = clips * work.candidates
    disk = heard(work)["disk"]
    return [
        Stage(
            "prepare",
            {"cores": seconds * constant("prepare") / cores, "disk": disk},
            0,
            clips * constant("row"),
        ),
        Stage(
            "annotate",
            {"cores": clips * (constant("annotate") + 5 * constant("clues")) / cores, "disk": disk},
            written=clips * constant("row"),
        ),
        Stage(
            "features",
            {
                "GPUs": 2 * fitted * work.encoder.flops(work.clip) / work.speed / work.gpus,
                **{name: value * fitted / clips for name, value in heard(work).items()},
            },
            2 * work.encoder.weights + 32 * 50 * (work.clip + 1) * work.encoder.inner * 4,
            fitted * work.frames,
        ),
        trained(work, "teacher", text, rows, 0, 2 * llm.weights, length=work.teacher + work.response),
        Stage(
            "teacher's top-k",
            {"GPUs": rows * read / work.speed / work.gpus},
            2 * llm.weights + 32 * work.response * 2 * llm.vocab * 4,
            kept,
        ),
        trained(work, "distill", student + ear, rows, row + kept / rows, 0),
        generated(work, "candidates", work.candidates),
        Stage(
            "judge",
            {
                "cores": judged * constant("rubric") / cores,
                "GPUs": judged * SHAPES["SmolLM2-135M"].flops(1, work.response) / work.speed / work.gpus,
            },
            written=judged * 600,
        ),
        trained(work, "dpo", both + ear, clips, row, 0, length=pair, response=2 * work.response),
        generated(work, "captions", 1),
    ]


def shown(seconds: float) -> str:
    """A time to read: seconds, minutes, hours or days."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s"


def compared(works: list[Work]) -> str:
    """A markdown table of times by stage, for one number of GPUs or more.

    Memory, disk and what each GPU sends are those of the second number, or of the only one.
    """
    plans = [plan(work) for work in works]
    place = min(1, len(works) - 1)
    head = ["stage", *(f"{work.gpus} GPU{'s' * (work.gpus > 1)}" for work in works)]
    head += ["GiB a GPU", "GB written", "GB sent"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for stages in zip(*plans, strict=True):
        some = stages[place]
        cells = [some.name, *(f"{shown(s.time)}, {s.bound}" for s in stages)]
        cells += [f"{some.memory / GIB:.3g}" if some.memory else "", f"{some.written / GB:,.3g}"]
        lines.append("| " + " | ".join([*cells, f"{some.moved / GB:,.3g}" if some.moved else ""]) + " |")
    whole = [shown(sum(stage.time for stage in stages)) for stages in plans]
    kept = sum(stage.written for stage in plans[place]) + works[place].hours * 3600 * constant("audio")
    lines.append("| " + " | ".join(["**all**", *whole, "", f"{kept / GB:,.0f} with the speech", ""]) + " |")
    return "\n".join(lines)


def advice(work: Work) -> str:
    """Which stage takes longest, and how to launch the training."""
    stages = plan(work)
    whole, longest = sum(stage.time for stage in stages), max(stages, key=lambda stage: stage.time)
    how = {name: value for name, value in training(work, 1).items() if name != "shards"}
    text = f"{longest.time / whole:.0%} of the time is {longest.name}, limited by {longest.bound}. "
    text += f"Launch: {choice(work.llm, work.device.memory, **how)}."
    large = [stage.name for stage in stages if stage.memory > 0.9 * work.device.memory]
    return text + (f" Too large for the device: {', '.join(large)}." if large else "")


def measured(path: Path, llm: str) -> dict[str, float]:
    """Rate and MFU of distillation as scripts/gpu_check.sh found them, of this LLM where it is there."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("way") == "distill, cached" and "mfu" in row]
    rows = [row for row in rows if row["size"] == llm] or rows
    if not rows:
        raise SystemExit(f"{path}: no row of `distill, cached` in it; run scripts/gpu_check.sh to its end")
    return {name: statistics.median(row[name] for row in rows) for name in ("mfu", "rate")}


def chosen_shape(model: str) -> Shape:
    """A known LLM's shape, or that of a folder with config.json.

    Raises:
        SystemExit: neither.
    """
    if model in SHAPES:
        return SHAPES[model]
    if (Path(model) / "config.json").is_file():
        return read_shape(Path(model))
    raise SystemExit(f"MODEL {model!r}: neither a folder with config.json nor one of {', '.join(SHAPES)}")


def main(words: list[str] | None = None) -> None:
    """Print the plan."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", nargs="?", help=f"folder of an LLM, or {', '.join(SHAPES)}")
    parser.add_argument("hours", nargs="?", type=float, help="of speech")
    parser.add_argument("gpus", nargs="?", type=int, help="in all, eight a host")
    parser.add_argument("--encoder", choices=ENCODERS, default="whisper-large-v3")
    parser.add_argument("--device", choices=DEVICES, default="h100")
    for name, default in (("clip", 5.0), ("captions", 2), ("candidates", 8), ("batch", 8), ("layers", 0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--cores", type=float, default=constant("cores"), help="of a host")
    parser.add_argument("--disk", type=float, default=constant("disk") / GB, help="GB a second, of a host")
    parser.add_argument("--measured", type=Path, help="gpu.jsonl of scripts/gpu_check.sh")
    parser.add_argument("--table", action="store_true", help="what docs/scaling.md shows")
    parser.add_argument("--constants", action="store_true", help="what is taken for granted, and from where")
    a = parser.parse_args(words)
    if a.constants:
        for name, (value, unit, source) in CONSTANTS.items():
            print(f"{name:10} {value:<12g} {unit} ({source})")
        return
    if a.table:
        for hours in (100, 1_000, 100_000):
            llm, device = SHAPES[a.model or "Qwen2.5-7B"], DEVICES[a.device]
            works = [Work(llm, ENCODERS[a.encoder], hours, gpus, device) for gpus in (1, 8, 64)]
            print(f"\n{hours:,} h\n\n{compared(works)}")
        return
    if a.model is None or a.hours is None or a.gpus is None:
        parser.error("MODEL HOURS GPUS are needed, e.g. Qwen2.5-7B 1000 8")
    for name in ("hours", "gpus", "clip", "captions", "candidates", "batch", "cores", "disk"):
        if not getattr(a, name) > 0:
            parser.error(f"{name}: must be above 0, is {getattr(a, name)}")
    rates = {}
    device = DEVICES[a.device]
    if a.measured:
        found = measured(a.measured, a.model)
        rates = {"mfu": found["mfu"], "attained": found["rate"] / device.flops}
    names = ("hours", "gpus", "clip", "captions", "candidates", "batch", "layers", "cores")
    given = {name: getattr(a, name) for name in names}
    work = Work(chosen_shape(a.model), ENCODERS[a.encoder], device=device, disk=a.disk * GB, **given, **rates)
    print(f"{a.model}, {a.encoder}, {a.hours:g} h in clips of {a.clip:g} s, {a.gpus} × {a.device}\n")
    print(f"{compared([work])}\n\n{advice(work)}")


if __name__ == "__main__":
    main()
