"""`aligncap senses face`: emotion from pictures of faces, measured beside a linear probe on raw pixels."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from aligncap.data.split import fold_speakers
from aligncap.senses.face_nets import DESCRIPTOR, NAME, SIDES, FaceNets, boxes_of, load_nets
from aligncap.senses.linear import fit_linear
from aligncap.senses.measures import Unit, difference, macro_f1_of, measured, table_of, write_confusion
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.outcome import read_parts
from aligncap.senses.pictures import evenly, read_frames, read_picture
from aligncap.senses.sense import FILE, Reading, save_tensors, write_scores
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, write_json
from aligncap.utils.options import Config, NaturalInt, option
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record

PENALTIES = (1e-3, 1e-2, 1e-1)  # of the head's squared weights; the one that is best on dev is taken
FRAMES = 5  # of a video, or of a moment's pictures
PROBED = 48  # pixels of a side that the probe sees
_HEAD = "head.safetensors"
# The detector's box lies lower than what the expression net reads best: where the edges of CK+48's close
# pictures lie beside the box that is found in them (train and dev subjects), in widths and heights of it.
_MOVED = np.array([0.035, -0.165, -0.035, -0.12])  # left, top, right, bottom
_log = logging.getLogger(__name__)


@dataclass
class FaceConfig(Config):
    """Train and measure the face sense: a head on what pretrained nets see in the largest face of a picture.

    Three are measured: the expression net's own scores, the head (logistic regression on its logits and 128
    numbers of the face), and a probe on raw pixels. Needs the extra `face` and
    `aligncap models fetch face-api`.

    Examples:
        aligncap senses face --manifest ck.jsonl --folds 10 --out runs/face
        aligncap senses face --manifest train.jsonl --dev dev.jsonl --test test.jsonl --out runs/face
    """

    manifest: str = option(help="Moments with pictures or videos, labels and speakers.")
    out: str = option(help="Folder for the sense, metrics.json, scores.jsonl and confusion.png.")
    dev: str | None = option(None, "Moments that choose the head's penalty.")
    test: str | None = option(None, "Moments to measure on.")
    folds: NaturalInt = option(
        0, "In place of --dev and --test: cross-validation over so many groups of speakers."
    )
    scores: Literal["auto", "head", "net"] = option(
        "auto", "Whose scores the sense gives; auto: the head's where all seven emotions were there to learn."
    )
    whole_below: NaturalInt = option(
        96, "A picture without a face found and at most so many pixels a side is taken for a face."
    )
    nets: str = option(NAME, "The nets: a default model or a folder.")
    device: str = option("cpu", "Where the nets run: cpu, cuda, cuda:1.")
    seed: NaturalInt = option(0, "Seed of the groups of speakers.")

    def own_errors(self) -> list[str]:
        if self.folds and (self.dev or self.test):
            return ["folds: dev and test are made by it; give either"]
        is_too_few = self.folds in (1, 2) or not (self.folds or (self.dev and self.test))
        return ["give --dev and --test, or --folds of 3 or more"] * is_too_few


@dataclass(frozen=True)
class Faces:
    """The faces of one moment, in the order of time; none where no picture has one."""

    features: Tensor  # (faces, 128 + 7): the descriptor, then the logits of the seven expressions
    pixels: Tensor  # (faces, 48 * 48): grey, 0 to 1, for the probe
    several: int = 0  # pictures with more than one face


class FaceSense:
    """Scores of the largest face of each of up to five pictures or frames, averaged; see `Sense`.

    Its features are the descriptor and the logits of each face found.
    """

    kind = "face"
    width = DESCRIPTOR + len(SEVEN)

    def __init__(self, nets: FaceNets, head: nn.Linear | None = None, whole_below: int = 96) -> None:
        self.nets, self.head, self.whole_below = nets, head, whole_below
        self._told = False  # that several faces were in a picture

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> FaceSense:
        """The sense of a folder that `aligncap senses face` wrote."""
        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))
        head = head_of(load_file(folder / _HEAD)) if settings["scores"] == "head" else None
        return cls(load_nets(settings["nets"], device), head, settings["whole_below"])

    def read(self, moments: Sequence[Moment]) -> Reading:
        """Scores and features; nan and (0, width) where no face is found. Raises UserErrors: bad files."""
        seen = see_all(self, moments)
        if not self._told and any(faces.several for faces in seen):
            self._told = True
            _log.info("some pictures show several faces; the largest counts")
        scores = [scores_of(self.head, faces.features) for faces in seen]
        return Reading(np.stack(scores) if scores else np.empty((0, 7)), [faces.features for faces in seen])

    @torch.no_grad()
    def boxes(self, pixels: np.ndarray) -> np.ndarray:
        """Faces of a picture (height, width, 3), the largest first; (faces, 5): score, then pixels left, top,
        right and bottom."""
        height, width = pixels.shape[:2]
        side = max(height, width)
        found = self.nets.detector(self._resized(pixels, (0, side - width, 0, side - height), "detector"))
        boxes = boxes_of(found[0].cpu())
        boxes[:, 1:] = (boxes[:, 1:] * side).clip(0, [width, height, width, height])
        boxes[:, 1:] = np.floor(boxes[:, 1:])
        sizes = (boxes[:, 3:] - boxes[:, 1:3]).prod(1)
        return boxes[np.argsort(-sizes, kind="stable")][: int((sizes > 0).sum())]

    @torch.no_grad()
    def look(self, pictures: Sequence[np.ndarray]) -> Faces:
        """The largest face of each picture that has one."""
        inputs: dict[str, list[Tensor]] = {"expression": [], "descriptor": []}
        grey, several = [], 0
        for pixels in pictures:
            boxes = self.boxes(pixels)
            several += len(boxes) > 1
            if len(boxes):
                pixels = cut(pixels, boxes[0, 1:])
            elif max(pixels.shape) > self.whole_below:
                continue
            around = max(pixels.shape[:2]) - np.array(pixels.shape[1::-1])
            pad = tuple(int(x) for side in around for x in (side // 2, side - side // 2))
            for net, own in inputs.items():
                own.append(self._resized(pixels, pad, net))
            small = F.interpolate(inputs["expression"][-1], (PROBED, PROBED), mode="area")
            grey.append(small.mean(1).flatten().cpu() / 255)
        if not grey:
            return Faces(torch.zeros(0, self.width), torch.zeros(0, PROBED**2), several)
        logits = self.nets.expression(torch.cat(inputs["expression"]))
        features = torch.cat([self.nets.descriptor(torch.cat(inputs["descriptor"])), logits], 1)
        return Faces(features.cpu(), torch.stack(grey), several)

    def _resized(self, pixels: np.ndarray, pad: tuple[int, ...], net: str) -> Tensor:
        """(1, 3, side, side) of the net; `pad` black pixels are added left, right, above and below."""
        tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
        tensor = F.pad(tensor, pad).to(next(self.nets.parameters()).device)
        size = (SIDES[net], SIDES[net])
        return F.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)


def cut(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What the nets see of a face found at left, top, right, bottom: the box moved by _MOVED."""
    height, width = pixels.shape[:2]
    sides = box[2:] - box[:2]
    left, top, right, bottom = (
        (box + np.tile(sides, 2) * _MOVED).clip(0, [width, height, width, height]).astype(int)
    )
    return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def pictures_of(moment: Moment) -> list[np.ndarray]:
    """Up to five pictures or frames of a moment, evenly drawn. Raises UserError: a file cannot be read."""
    if moment.pictures:
        return [read_picture(moment.pictures[i]) for i in evenly(len(moment.pictures), FRAMES)]
    return read_frames(moment.video, FRAMES) if moment.video else []


def see_all(sense: FaceSense, moments: Sequence[Moment], what: str = "") -> list[Faces]:
    """The faces of each moment. `what`: of a progress bar; how many had none or several is then logged.

    Raises:
        UserErrors: every file that cannot be read.
    """
    seen, errors = [], []
    for moment in track(moments, None, what) if what else moments:
        try:
            seen.append(sense.look(pictures_of(moment)))
        except UserError as error:
            errors.append(f"{moment.id}: {error}")
    if errors:
        raise UserErrors(errors)
    if what:
        several, without = (sum(f.several for f in seen), sum(not len(f.features) for f in seen))
        told = "%d of %d moments show no face; of %d pictures with several faces the largest counts"
        _log.info(told, without, len(seen), several)
    return seen


def head_of(state: Mapping[str, Tensor]) -> nn.Linear:
    """The linear layer of these weights, to be read alone."""
    head = nn.Linear(state["weight"].shape[1], len(SEVEN)).requires_grad_(False)
    head.load_state_dict(state)
    return head


def scores_of(head: nn.Linear | None, numbers: Tensor) -> np.ndarray:
    """Mean probabilities (7,) over the faces of a moment; of nets' own logits without a head; nan of none."""
    if not len(numbers):
        return np.full(7, np.nan)
    scores = numbers[:, -len(SEVEN) :].softmax(-1) if head is None else head(numbers).softmax(-1)
    return scores.mean(0).double().numpy()


def run_face(config: FaceConfig) -> int:
    """`aligncap senses face`. Raises UserError: no labels, too few speakers, pictures that cannot be read."""
    out = Path(config.out)
    files = {"train": config.manifest, "dev": config.dev, "test": config.test}
    parts = read_parts(files, "face")
    moments = [moment for part in parts.values() for moment in part]
    splits = splits_of(config, list(parts.values()))
    sense = FaceSense(load_nets(config.nets, config.device), None, config.whole_below)
    seen = see_all(sense, moments, "looking at faces")
    kinds = {"head": [f.features for f in seen], "pixels": [f.pixels for f in seen]}
    scores = {"net": np.stack([scores_of(None, f.features) for f in seen])}
    penalties: dict[str, list[float]] = {}
    for name, numbers in kinds.items():
        scores[name] = np.full((len(moments), 7), np.nan)
        for train, dev, test in splits:
            penalty, head = fit_on_dev(moments, numbers, train, dev)
            penalties.setdefault(name, []).append(penalty)
            scores[name][test] = [scores_of(head, numbers[i]) for i in test]
    tested = sorted(i for _, _, test in splits for i in test)
    own = [moments[i] for i in tested]
    scores = {name: rows[tested] for name, rows in scores.items()}
    systems = {name: measured(own, rows) for name, rows in scores.items()}
    # the head that is kept: of cross-validation one more, of all, with the usual penalty
    penalty = float(np.median(penalties["head"]))
    kept = range(len(moments)) if config.folds else splits[0][0]
    head = _fit(moments, kinds["head"], kept, penalty)
    if missing := set(SEVEN) - {moments[i].label for i in kept}:
        text = "no examples of %s, which the head therefore never names; --scores auto takes the net's own"
        _log.info(text, ", ".join(sorted(missing)))
    chosen = config.scores if config.scores != "auto" else "net" if missing else "head"
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / _HEAD, head.state_dict())
    settings = {"kind": "face", "scores": chosen, "nets": config.nets}
    write_json(out / FILE, settings | {"whole_below": config.whole_below, "penalty": penalty})
    write_scores(out / "scores.jsonl", own, scores[chosen])
    gaps = {f"head − {name}": difference(own, scores[name], scores["head"]) for name in ("net", "pixels")}
    metrics: Row = {"systems": systems, "differences": gaps, "penalties": penalties}
    write_json(out / "metrics.json", metrics)
    title = f"face, scores of the {chosen}"
    write_confusion(out / "confusion.png", own, scores[chosen], title, "emotion of the face")
    write_run_record(out, "senses face", asdict(config), filter(None, files.values()), seed=config.seed)
    Console().print(table_of(systems, "face"))
    print(f"picture: {out}/confusion.png")
    return 0


def splits_of(config: FaceConfig, parts: list[list[Moment]]) -> list[tuple[list[int], ...]]:
    """Places of the train, dev and test moments of each fold, or of the three manifests, among all moments.

    Of each fold the dev speakers are the next fold's, so that every choice is made inside.
    """
    if not config.folds:
        ends = np.cumsum([0, *map(len, parts)])
        return [tuple(list(range(a, b)) for a, b in zip(ends[:-1], ends[1:], strict=True))]
    (moments,) = parts
    if nameless := [m.id for m in moments if not m.speaker]:
        raise UserErrors([f"{config.manifest}: {name} has no speaker to group by" for name in nameless[:20]])
    groups = fold_speakers([Unit(m.speaker, config.manifest) for m in moments], config.folds, config.seed)
    fold_of = {speaker: k for k, group in enumerate(groups) for speaker in group}
    folds = [fold_of[str(m.speaker)] for m in moments]
    splits = []
    for k in range(config.folds):
        dev = (k + 1) % config.folds
        where = [[i for i, f in enumerate(folds) if f == one] for one in (dev, k)]
        splits.append(([i for i, f in enumerate(folds) if f not in (k, dev)], *where))
    return splits


def fit_on_dev(
    moments: Sequence[Moment], numbers: Sequence[Tensor], train: Sequence[int], dev: Sequence[int]
) -> tuple[float, nn.Linear]:
    """The penalty with the best macro F1 on dev, the larger of equals, and its head."""
    found = []
    for penalty in PENALTIES:
        head = _fit(moments, numbers, train, penalty)
        scores = np.stack([scores_of(head, numbers[i]) for i in dev])
        found.append((macro_f1_of([moments[i] for i in dev], scores), penalty, head))
    _, penalty, head = max(found, key=lambda one: one[:2])
    return penalty, head


def _fit(
    moments: Sequence[Moment], numbers: Sequence[Tensor], places: Sequence[int], penalty: float
) -> nn.Linear:
    rows = torch.cat([numbers[i] for i in places]).double().numpy()
    own = [str(moments[i].label) for i in places for _ in range(len(numbers[i]))]
    if len(set(own)) < 2:
        raise UserError("faces of two emotions or more are needed to train on; fewer were found")
    return head_of(fit_linear(rows, own, penalty, balanced=True))
