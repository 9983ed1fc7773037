"""`aligncap senses gate`: one classifier on the features of several senses, with text as its trunk.

Each state of the text attends to the features of every other sense; a gate, which sees both, says how much
of what was found there is added. Where the others are noise or absent the gates close and the text remains.
Heads of seven emotions and of three valences are trained together, L = CE7 + λ · CE3.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from aligncap.senses.measures import (
    difference,
    macro_f1_of,
    measured,
    refuse_absent,
    table_of,
    write_confusion,
)
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.senses.outcome import shared
from aligncap.senses.score import features_of
from aligncap.senses.sense import save_tensors, write_scores
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, write_json
from aligncap.utils.options import (
    Config,
    Dropout,
    NaturalInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    named_values,
    option,
)
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record

FILE = "gated.json"
# negative, neutral, positive; whether a surprise is pleasant its label does not tell, so it has no target
VALENCE = {"sad": 0, "angry": 0, "fearful": 0, "disgusted": 0, "neutral": 1, "happy": 2}
_NONE = -100  # a target that does not count
_STEPS = 256  # of a sense, at most: the first of them

Features = Mapping[str, Sequence[Tensor]]  # of each moment by sense, (steps, width) or (0, width)


@dataclass
class GateConfig(Config):
    """Gated fusion of senses' features (`senses score --features`), chosen on dev, measured on test.

    Beside it each sense is measured with the others masked. Captions that the text sense has scored (`senses
    score --captions`) are one more sense, named caption.

    Examples:
        aligncap senses gate --features text=f/text voice=f/voice face=f/face --train made/train.jsonl --dev made/dev.jsonl --test made/test.jsonl --out runs/gated
    """  # noqa: E501

    train: str = option(help="Labelled moments to fit on.")
    dev: str = option(help="Labelled moments that choose the epoch.")
    test: str = option(help="Labelled moments to measure on.")
    features: list[str] = option(help="NAME=FOLDER of each sense's features, which hold all these moments.")
    out: str = option(help="Folder for the model, metrics.json, scores and confusion.png.")
    captions: list[str] = option([], "Files of captions that the sense named caption was scored on.")
    trunk: str = option("text", "The sense whose states attend to the others.")
    size: PositiveInt = option(64, "Width of the model; four heads of attention share it.")
    valence: NonNegativeFloat = option(0.3, "λ, the weight of the loss of three classes.")
    absent: Dropout = option(0.2, "How often a sense is hidden from a moment in training.")
    dropout: Dropout = option(0.2, "Of the states.")
    epochs: PositiveInt = option(30, "The one with the best macro F1 on dev is kept.")
    learning_rate: PositiveFloat = option(1e-3, "AdamW's, after a warm-up of one epoch, with a cosine to 0.")
    batch_size: PositiveInt = option(32, "Moments at a time.")
    seed: NaturalInt = option(0, "Seed.")

    def own_errors(self) -> list[str]:
        try:
            names = [name for name, _ in named_values(self.features, "features")]
        except UserErrors as error:
            return error.errors
        errors = []
        if len(names) < 2 or len(set(names)) < len(names):
            errors.append("features: two senses or more, each of another name")
        if self.trunk not in names:
            errors.append(f"trunk={self.trunk}: none of the senses {', '.join(names)}")
        return errors + [f"size={self.size}: must be a multiple of 4"] * (self.size % 4 > 0)


class GatedFusion(nn.Module):
    """Logits of seven emotions and three valences from the senses' features.

    Args:
        widths: of each sense's features, by its name; trunk: one of them; size: of the states.
    """

    def __init__(self, widths: Mapping[str, int], trunk: str, size: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        others = [name for name in widths if name != trunk]
        self.trunk = trunk
        self.enter = nn.ModuleDict(
            {n: nn.Sequential(nn.LayerNorm(w), nn.Linear(w, size), nn.GELU()) for n, w in widths.items()}
        )
        # a state before those of the sense, so that attention has somewhere to look where there are none
        self.nothing = nn.ParameterDict({n: nn.Parameter(torch.zeros(size)) for n in widths})
        self.attend = nn.ModuleDict(
            {n: nn.MultiheadAttention(size, 4, dropout, batch_first=True) for n in others}
        )
        self.gate = nn.ModuleDict({n: nn.Linear(2 * size, size) for n in others})
        self.norm, self.drop = nn.LayerNorm(size), nn.Dropout(dropout)
        self.seven, self.three = nn.Linear(size, len(SEVEN)), nn.Linear(size, 3)

    def forward(self, features: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(n, 7) and (n, 3) of padded features (n, steps, width) and their true lengths (n,) by sense."""
        states, masks = {}, {}
        for name, own in features.items():
            first = self.nothing[name].expand(len(own), 1, -1)
            states[name] = torch.cat([first, self.drop(self.enter[name](own))], 1)
            masks[name] = torch.arange(states[name].shape[1]) > lengths[name][:, None]
        trunk = states[self.trunk]
        total = trunk
        for name, attend in self.attend.items():
            found, _ = attend(
                trunk, states[name], states[name], key_padding_mask=masks[name], need_weights=False
            )
            gate = self.gate[name](torch.cat([trunk, found], -1)).sigmoid()
            there = (lengths[name] > 0)[:, None, None]
            total = total + gate * found * there
        own = (~masks[self.trunk])[..., None].float()
        pooled = self.drop((self.norm(total) * own).sum(1) / own.sum(1))
        return self.seven(pooled), self.three(pooled)


def load_gated(folder: str | Path) -> GatedFusion:
    """The model of a folder that `aligncap senses gate` wrote, in evaluation.

    Raises:
        UserError: there is none.
    """
    try:
        settings = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        model = GatedFusion(settings["widths"], settings["trunk"], settings["size"])
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: no gated fusion; `aligncap senses gate` trains one") from error
    return model.eval()


def batch_of(
    features: Features, places: Sequence[int], hidden: Mapping[str, set[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Padded features and lengths of some moments; `hidden`: places by sense that count as absent."""
    padded, lengths = {}, {}
    for name, rows in features.items():
        gone = (hidden or {}).get(name, set())
        own = [rows[i][: 0 if i in gone else _STEPS] for i in places]
        padded[name] = pad_sequence(own, batch_first=True)
        lengths[name] = torch.tensor([len(row) for row in own])
    return padded, lengths


@torch.no_grad()
def read_gated(model: GatedFusion, features: Features, only: Sequence[str] = ()) -> np.ndarray:
    """Probabilities (n, 7) of n moments; nan where no sense has features. `only`: others are masked."""
    model.eval()
    count, known = len(next(iter(features.values()))), [n for n in features if not only or n in only]
    everything = set(range(count))
    hidden = {name: everything for name in features if name not in known}
    scores = np.full((count, 7), np.nan)
    for start in range(0, count, 64):
        places = range(start, min(start + 64, count))
        seven, _ = model(*batch_of(features, places, hidden))
        scores[start : start + 64] = seven.softmax(-1).double().numpy()
    there = np.array([[len(features[name][i]) > 0 for name in known] for i in range(count)]).any(axis=1)
    scores[~there] = np.nan
    return scores


def train_gated(
    config: GateConfig, train: tuple[Sequence[Moment], Features], dev: tuple[Sequence[Moment], Features]
) -> tuple[GatedFusion, list[Row]]:
    """Fit, and keep the epoch with the best macro F1 on dev; also what each epoch came to."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    moments, features = train
    widths = {name: rows[0].shape[1] for name, rows in features.items()}
    model = GatedFusion(widths, config.trunk, config.size, config.dropout)
    seven = torch.tensor([SEVEN.index(str(m.label)) for m in moments])
    three = torch.tensor([VALENCE.get(str(m.label), _NONE) for m in moments])
    weight = 1 / torch.bincount(seven, minlength=7).clamp(min=1)  # labels count alike
    weight = weight / weight[seven].mean()
    steps = -(-len(moments) // config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps, config.epochs * steps)
    best, kept, log = -1.0, copy.deepcopy(model.state_dict()), []
    for epoch in track(range(config.epochs), None, "gated fusion"):
        model.train()
        order, total = rng.sample(range(len(moments)), len(moments)), 0.0
        for start in range(0, len(order), config.batch_size):
            places = order[start : start + config.batch_size]
            hidden = {name: {i for i in places if rng.random() < config.absent} for name in features}
            for i in places:  # one sense at least is left
                if all(i in own or not len(features[name][i]) for name, own in hidden.items()):
                    for own in hidden.values():
                        own.discard(i)
            emotions, valences = model(*batch_of(features, places, hidden))
            loss = F.cross_entropy(emotions, seven[places], weight)
            if (three[places] != _NONE).any():
                loss = loss + config.valence * F.cross_entropy(valences, three[places], ignore_index=_NONE)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(places)
        score = macro_f1_of(dev[0], read_gated(model, dev[1]))
        log.append({"epoch": epoch + 1, "loss": total / len(order), "dev_macro_f1": score})
        if score > best:
            best, kept = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval(), log


def run_gate(config: GateConfig) -> int:
    """`aligncap senses gate`. Raises UserErrors: folders of features that lack moments, no labels."""
    out, folders = Path(config.out), dict(named_values(config.features, "features"))
    files = {"train": config.train, "dev": config.dev, "test": config.test}
    refuse_absent(*files.values(), *config.captions)
    parts = {name: [m for m in read_moments(path) if m.label] for name, path in files.items()}
    if empty := [files[name] for name, part in parts.items() if len({m.label for m in part}) < 2]:
        raise UserErrors([f"{path}: needs moments of two emotions or more" for path in empty])
    if errors := shared(parts, files):
        raise UserErrors(errors)
    found = {name: features_of(folders, part, config.captions) for name, part in parts.items()}
    model, log = train_gated(config, (parts["train"], found["train"]), (parts["dev"], found["dev"]))
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / "model.safetensors", model.state_dict())
    widths = {name: rows[0].shape[1] for name, rows in found["train"].items()}
    write_json(out / FILE, {"widths": widths, "trunk": config.trunk, "size": config.size})
    test = parts["test"]
    scores = {"gated": read_gated(model, found["test"])}
    scores |= {f"{name} alone": read_gated(model, found["test"], [name]) for name in folders}
    rows = {name: measured(test, own) for name, own in scores.items()}
    gaps = {
        f"gated − {n}": difference(test, own, scores["gated"]) for n, own in scores.items() if n != "gated"
    }
    write_json(out / "metrics.json", {"systems": rows, "differences": gaps, "log": log})
    write_scores(out / "scores-test.jsonl", test, scores["gated"])
    write_scores(out / "scores-dev.jsonl", parts["dev"], read_gated(model, found["dev"]))
    write_confusion(
        out / "confusion.png", test, scores["gated"], "gated fusion, test", "emotion of the senses together"
    )
    write_run_record(out, "senses gate", asdict(config), files.values(), seed=config.seed)
    Console().print(table_of(rows, "gated fusion on test"))
    print(f"picture: {out}/confusion.png")
    return 0
