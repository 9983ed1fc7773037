"""`aligncap senses voice`: emotion from how something is said, by ACRNN on log-mel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.models.precision import pick_device
from aligncap.senses.acrnn import STRIDE, Acrnn, Shape, log_mel, windows
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.outcome import read_parts, write_outcome
from aligncap.senses.sense import FILE, Reading, save_tensors
from aligncap.senses.voice_training import (
    CLIPS,
    STATE,
    WINDOWS,
    VoiceConfig,
    kept_log_mels,
    train,
)
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, write_json
from aligncap.utils.progress import track

WEIGHTS = "model.safetensors"


def run_voice(config: VoiceConfig) -> int:
    """`aligncap senses voice`."""
    device = pick_device(config.device)
    files = {"train": config.manifest, "dev": config.dev, "test": config.test}
    parts = read_parts(files, "voice")
    out = Path(config.out)
    trained = train(config, parts, kept_log_mels(config, parts), out, device)
    if trained.diverged:
        raise UserError(f"training diverged in epoch {trained.epochs}; lower --learning_rate and start again")
    sense = VoiceSense(trained.model, device)
    sense.save(out, {"epoch": trained.best_epoch, "dev_macro_f1": trained.dev})
    write_outcome(out, "senses voice", asdict(config), files, parts, sense)
    (out / STATE).unlink(missing_ok=True)
    return 0


@dataclass
class VoiceSense:
    """A trained ACRNN; see `sense.Sense`."""

    model: Acrnn
    device: str = "cpu"
    kind: str = "voice"

    def __post_init__(self) -> None:
        self.model.eval().to(self.device)
        self.width = 2 * self.model.shape.hidden  # of the features: the states after attention over time

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> VoiceSense:
        """That of a folder; what can go wrong is told by `sense.load_sense`."""
        device = pick_device(device)
        model = Acrnn(Shape(**json.loads((folder / FILE).read_text(encoding="utf-8"))["shape"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
        return cls(model, device)

    def save(self, folder: Path, more: Row) -> None:
        """Write weights and settings; `more` is what else sense.json says."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, self.model.state_dict())
        write_json(folder / FILE, {"kind": "voice", "shape": asdict(self.model.shape), **more})

    @torch.no_grad()
    def read(self, moments: Sequence[Moment]) -> Reading:
        """Probabilities: the mean over the windows of a clip; features: a state each 93 ms, (steps, width).

        Raises:
            UserErrors: every sound file that cannot be read.
        """
        scores = np.full((len(moments), len(SEVEN)), np.nan)
        features = [torch.zeros(0, self.width) for _ in moments]
        heard = [i for i, m in enumerate(moments) if m.audio]
        errors = []
        for start in track(range(0, len(heard), CLIPS), None, "listening"):
            cuts = {}
            for i in heard[start : start + CLIPS]:
                try:
                    cuts[i] = windows(log_mel(load_audio(str(moments[i].audio))))
                except UserError as error:
                    errors.append(str(error))
            if errors or not cuts:
                continue
            states, own = self._states(
                torch.cat([c.mel for c in cuts.values()]), torch.cat([c.frames for c in cuts.values()])
            )
            shares = self.model.classify(states, own).softmax(1).cpu().double()
            place = 0
            for i, cut in cuts.items():
                rows = range(place, place + len(cut.frames))
                scores[i] = shares[rows.start : rows.stop].mean(0).numpy()
                new = [
                    states[r][own[r]][repeated // STRIDE :]
                    for r, repeated in zip(rows, cut.repeated, strict=True)
                ]
                features[i] = torch.cat(new).cpu()
                place = rows.stop
        if errors:
            raise UserErrors(errors)
        return Reading(scores, features)

    def _states(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(mel.split(WINDOWS), frames.split(WINDOWS), strict=True)
        on = ((x.to(self.device), n.to(self.device)) for x, n in pairs)
        found = [self.model.states(self.model.standardised(x, n), n) for x, n in on]
        return torch.cat([states for states, _ in found]), torch.cat([own for _, own in found])
