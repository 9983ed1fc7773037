"""Training of the sense of voice: log-mels that are kept, epochs, and a state from which a run goes on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from aligncap.audio.augment import CHANNEL_VERSION, through_channel
from aligncap.audio.files import load_audio
from aligncap.audio.level import normalise_level
from aligncap.audio.members import stamp
from aligncap.models.precision import autocast
from aligncap.senses.acrnn import FRAMES, HOP, MELS, Acrnn, Shape, log_mel, windows
from aligncap.senses.measures import macro_f1_of
from aligncap.senses.moments import SEVEN
from aligncap.senses.outcome import Parts
from aligncap.senses.sense import save_tensors
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row
from aligncap.utils.options import (
    Config,
    Dropout,
    NaturalInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    option,
)
from aligncap.utils.progress import track
from aligncap.utils.run_record import file_hashes
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill

STATE = "state.safetensors"  # of a run that has not ended
DIVERGED = 3 * math.log(len(SEVEN))  # mean loss of an epoch above this: thrice that of guessing
CLIPS = 16  # read at a time
WINDOWS = 64  # through the network at a time
_MASK = 16  # mel bands, and frames, that are hidden at the most
_LOUDER = 0.7  # nepers (6 dB of power): how much louder or softer a window is made at the most
_FREE = ("out", "test", "cache_dir", "epochs", "patience")  # may change where a run goes on
_log = logging.getLogger(__name__)


@dataclass
class VoiceTraining(Config):
    """What `senses voice` and its grid share."""

    manifest: str = option(help="Manifest to train on; split by speaker first.")
    dev: str = option(help="Manifest that chooses the epoch, by macro F1.")
    out: str = option(help="Folder of the sense, its scores, metrics.json and confusion.png.")
    width: PositiveInt = option(64, "Channels of the first block; 2, 4 and 8 times as many in the others.")
    hidden: PositiveInt = option(128, "Of each direction of the BiLSTM.")
    heads: PositiveInt = option(4, "Of the attention over time.")
    dropout: Dropout = option(0.3, "Before the BiLSTM, in it and in the MLP.")
    mixup: NonNegativeFloat = option(0.2, "Alpha of mixup's beta distribution; 0: none.")
    balance: bool = option(True, "Draw every emotion alike often.")
    channels: NaturalInt = option(1, "Other channels through which each training clip is heard as well.")
    augment: bool = option(
        True, "Hide a band and a stretch of each window, and change its level by up to 6 dB."
    )
    weight_decay: NonNegativeFloat = option(1e-4, "Of AdamW.")
    epochs: PositiveInt = option(60, "At the most.")
    plateau: PositiveInt = option(
        4, "Epochs without a better dev set after which the learning rate is halved."
    )
    patience: PositiveInt = option(12, "Epochs without a better dev set after which training ends.")
    precision: Literal["float32", "bfloat16"] = option("float32", "Of training.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")
    seed: NaturalInt = option(0, "Of weights, order, mixup and augmentation.")
    cache_dir: str = option("runs/cache", "Folder in which log-mels are kept, 67 kB a clip of 3 s.")

    def own_errors(self) -> list[str]:
        if (2 * self.hidden) % self.heads:
            return [f"heads={self.heads}: must divide twice --hidden, {2 * self.hidden}"]
        return []


@dataclass
class VoiceConfig(VoiceTraining):
    """Train the sense of voice: ACRNN on windows of 3 s of log-mel, without any pretrained weights.

    The epoch that is best on dev is kept; the test set is read once, at the end. The same command goes on
    where it was stopped.

    Examples:
        aligncap senses voice --manifest train.jsonl --dev dev.jsonl --test test.jsonl --out runs/voice
        aligncap senses voice --config senses/voice --manifest train.jsonl --dev dev.jsonl --out runs/voice
    """

    test: str | None = option(None, "Manifest to score in the end.")
    learning_rate: PositiveFloat = option(5e-4, "Of AdamW, at the start.")
    batch_size: PositiveInt = option(32, "Windows in a step.")
    smoothing: Dropout = option(0.1, "Of labels: how much of each goes to all seven alike.")


def key_of(path: str) -> str:
    """What tells a sound file from others without reading it."""
    return digest(*stamp(path))


def kept_log_mels(config: VoiceTraining, parts: Parts) -> TensorCache:
    """Log-mels (128, n) of all clips of train and dev, float16, by `key_of` the file and "-0"; training clips
    also through other channels, "-1" and on.

    Raises:
        UserErrors: every file that cannot be read.
    """
    description = {
        "kind": "log-mel",
        "bands": MELS,
        "hop": HOP,
        "audio": AUDIO_VERSION,
        "channel": CHANNEL_VERSION,
    }
    cache = TensorCache(Path(config.cache_dir) / f"mels-{digest(description)}", description)
    wanted = {f"{key_of(str(m.audio))}-0": m for m in [*parts["train"], *parts["dev"]]}
    for number in range(1, config.channels + 1):
        wanted |= {f"{key_of(str(m.audio))}-{number}": m for m in parts["train"]}
    errors: dict[str, None] = {}

    def compute(batch: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        for key in batch:
            try:
                samples = load_audio(str(wanted[key].audio))
            except UserError as error:
                errors[str(error)] = None
                continue
            number = key.rpartition("-")[2]
            if number != "0":
                samples = normalise_level(through_channel(samples, f"{wanted[key].id} {number}"))
            found[key] = log_mel(samples).half()
        return found

    fill(cache, wanted, compute, CLIPS, "log-mels")
    if errors:
        raise UserErrors(list(errors))
    return cache


def _drawn(mel: Tensor, augment: bool, rng: np.random.Generator) -> tuple[Tensor, int]:
    """A window (128, 130) from anywhere in a clip's log-mel, and how many frames of it are the clip's."""
    start = int(rng.integers(0, max(0, mel.shape[1] - FRAMES) + 1))
    mel = mel[:, start : start + FRAMES].float()
    frames = mel.shape[1]
    if augment:
        mel = mel + rng.uniform(-_LOUDER, _LOUDER)
        middle = mel.mean()
        for axis in (0, 1):
            size = int(rng.integers(0, min(_MASK, mel.shape[axis] // 2) + 1))
            mel.narrow(axis, int(rng.integers(0, mel.shape[axis] - size + 1)), size).fill_(middle)
    return functional.pad(mel, (0, FRAMES - frames)), frames


# ---- training


@dataclass
class Trained:
    """What training gave: the model of the best epoch, that epoch (from 1) and its macro F1 on dev."""

    model: Acrnn
    best_epoch: int = 0
    dev: float = -1.0
    epochs: int = 0  # that were run
    diverged: bool = False
    history: list[Row] = field(default_factory=list)  # "epoch", "loss", "dev_macro_f1", "learning_rate"


def train(config: VoiceConfig, parts: Parts, mels: TensorCache, out: Path, device: str) -> Trained:
    """Train on parts["train"] and keep the weights of the epoch whose macro F1 on parts["dev"] is best.

    After each epoch everything that goes on is in `out`/state.safetensors; a run that starts there with the
    same options and files ends with the same weights as one that was never stopped.
    """
    torch.manual_seed(config.seed)
    model = Acrnn(Shape(config.width, config.hidden, config.heads, config.dropout)).to(device)
    keys = [key_of(str(m.audio)) for m in parts["train"]]
    labels = torch.tensor([SEVEN.index(str(m.label)) for m in parts["train"]])
    _standardise(model, [mels[f"{key}-0"].float() for key in keys])
    dev = [windows(mels[f"{key_of(str(m.audio))}-0"].float()) for m in parts["dev"]]
    dev_mel, dev_frames = torch.cat([c.mel for c in dev]), torch.cat([c.frames for c in dev])
    ends = np.cumsum([len(c.frames) for c in dev])[:-1]
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = ReduceLROnPlateau(optimizer, "max", 0.5, config.plateau - 1, threshold=0.0)
    run = Trained(model)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = {name: value for name, value in asdict(config).items() if name not in _FREE}
    same = digest(own, sorted(file_hashes([config.manifest, config.dev]).values()))
    if (progress := _resume(out / STATE, same, model, optimizer, best)) is not None:
        schedule.load_state_dict(progress.pop("schedule"))
        optimizer.param_groups[0]["lr"] = progress.pop("learning_rate")
        run = Trained(model, **progress)
        _log.info("%s: going on after epoch %d", out, run.epochs)
    for epoch in track(range(run.epochs + 1, config.epochs + 1), None, "training"):
        if epoch - 1 - run.best_epoch >= config.patience:
            break
        loss = _run_epoch(config, epoch, model, optimizer, keys, labels, mels, device)
        run.epochs, run.diverged = epoch, not loss <= DIVERGED
        if run.diverged:
            break
        scores = probabilities(model, dev_mel, dev_frames, device)
        score = macro_f1_of(parts["dev"], np.stack([part.mean(0) for part in np.split(scores, ends)]))
        rate = optimizer.param_groups[0]["lr"]
        run.history.append({"epoch": epoch, "loss": loss, "dev_macro_f1": score, "learning_rate": rate})
        _log.info("epoch %d: loss %.3f, dev macro F1 %.3f, learning rate %.1e", epoch, loss, score, rate)
        if score > run.dev:
            run.best_epoch, run.dev = epoch, score
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        schedule.step(score)
        _keep(out / STATE, same, run, optimizer, schedule, best)
    model.load_state_dict(best)
    return run


def _run_epoch(
    config: VoiceConfig,
    epoch: int,
    model: Acrnn,
    optimizer: torch.optim.Optimizer,
    keys: Sequence[str],
    labels: Tensor,
    mels: TensorCache,
    device: str,
) -> float:
    """As many windows as there are clips, drawn by emotion; their mean loss, which ends where it is infinite.

    What is drawn depends on seed and epoch alone, so that a run can go on after any epoch.
    """
    rng = np.random.default_rng([config.seed, epoch])
    torch.manual_seed(config.seed * 100_003 + epoch)  # of dropout
    counts = np.bincount(labels.numpy(), minlength=len(SEVEN))[labels.numpy()]
    share = 1 / counts if config.balance else np.ones(len(keys))
    order = rng.choice(len(keys), len(keys), p=share / share.sum())
    model.train()
    losses = []
    for batch in _batches(order, config.batch_size):
        drawn = [mels[f"{keys[i]}-{rng.integers(0, config.channels + 1)}"] for i in batch]
        cut, frames = zip(*(_drawn(mel, config.augment, rng) for mel in drawn), strict=True)
        with autocast(device, getattr(torch, config.precision)):
            mel, lengths = torch.stack(cut).to(device), torch.tensor(frames, device=device)
            loss = _loss(model, mel, lengths, labels[batch].to(device), config, rng)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return float(np.mean(losses))


def _loss(
    model: Acrnn, mel: Tensor, frames: Tensor, labels: Tensor, config: VoiceConfig, rng: np.random.Generator
) -> Tensor:
    """Cross-entropy with smoothed labels; with mixup (Zhang et al. 2018), of windows mixed in pairs."""
    share = float(rng.beta(config.mixup, config.mixup)) if config.mixup else 1.0
    other = torch.from_numpy(rng.permutation(len(labels)))
    x = model.standardised(mel, frames)
    mixed = share * x + (1 - share) * x[other]
    longer = torch.maximum(frames, frames[other]) if share < 1 else frames
    logits = model.classify(*model.states(mixed, longer)).float()
    one, two = (
        functional.cross_entropy(logits, y, label_smoothing=config.smoothing) for y in (labels, labels[other])
    )
    return share * one + (1 - share) * two


def _batches(order: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """`order` in pieces of `size`; a last piece of one is left out, since it has no variance."""
    pieces = [order[start : start + size] for start in range(0, len(order), size)]
    return pieces[:-1] if len(pieces) > 1 and len(pieces[-1]) == 1 else pieces


def _standardise(model: Acrnn, mels: Sequence[Tensor]) -> None:
    count = sum(mel.shape[1] for mel in mels)
    mean = sum((mel.sum(1) for mel in mels), torch.zeros(MELS)) / count
    square = sum(((mel - mean[:, None]).square().sum(1) for mel in mels), torch.zeros(MELS)) / count
    model.mean.copy_(mean)
    model.std.copy_(square.sqrt().clamp(min=1e-3))


@torch.no_grad()
def probabilities(model: Acrnn, mel: Tensor, frames: Tensor, device: str) -> np.ndarray:
    """Probabilities (n, 7) of windows (n, 128, 130)."""
    model.eval()
    pairs = zip(mel.split(WINDOWS), frames.split(WINDOWS), strict=True)
    return torch.cat([model(x.to(device), n.to(device)).softmax(1).cpu() for x, n in pairs]).double().numpy()


def _keep(
    path: Path,
    same: str,
    run: Trained,
    optimizer: torch.optim.Optimizer,
    schedule: ReduceLROnPlateau,
    best: dict[str, Tensor],
) -> None:
    """Everything that a run needs to go on, in one file."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    progress: Row = {k: v for k, v in vars(run).items() if k != "model"}
    progress |= {"schedule": schedule.state_dict(), "learning_rate": optimizer.param_groups[0]["lr"]}
    save_tensors(path, tensors, {"same": same, "progress": json.dumps(progress)})


def _resume(
    path: Path, same: str, model: Acrnn, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> Row | None:
    """Take up the state of a run of the same options and files; None: there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("same") != same:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        return None  # a damaged state is none
    own: dict[str, dict[str, Any]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        own[part][rest] = tensor
    model.load_state_dict(own["model"])
    best.update(own["best"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in own["optimizer"].items():
        number, _, rest = name.partition(".")
        moments.setdefault(int(number), {})[rest] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return dict(json.loads(metadata["progress"]))
