"""`aligncap calibrate`: on dev clips, how far a model's confidence is to be trusted."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from aligncap.data.manifest import read_manifest
from aligncap.inference.batch import over_clips
from aligncap.inference.captioner import Captioner
from aligncap.inference.confidence import Calibration
from aligncap.inference.jobs import Job, job_of, with_condition
from aligncap.models.checkpoints import CALIBRATION
from aligncap.models.precision import dtype_name
from aligncap.text.emotions import labels
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_json
from aligncap.utils.journal import Journal
from aligncap.utils.options import Config, PositiveInt, option
from aligncap.utils.statistics import Floats, Ints

FEWEST = 30  # clips that name an emotion: fewer leave the temperature open by a third or more
RANGE = (0.05, 20.0)  # of the temperature
LEAST = 1e-9  # of a probability
GAIN = 0.02  # nats by which a prior must lower the loss to be taken


@dataclass
class CalibrateConfig(Config):
    """Fit how sure captions are of the emotion they name, and keep it in the model's folder.

    The clips are captioned, and again with steady noise in their place, which says what the model names when
    there is nothing to hear: the prior. The temperature makes it as likely as can be that captions are right
    where they are, and wrong where they are wrong; the prior is taken only if it makes that likelier still.
    Give clips that the model was not trained on.

    Examples:
        aligncap calibrate --model runs/model --manifest dev.jsonl
    """

    model: str = option(help="Folder of a merged model or of a training run; calibration.json is put there.")
    manifest: str = option(help="Manifest of labelled clips: dev, never test.")
    batch_size: PositiveInt = option(32, "Clips that are decoded at a time.")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")


def run_calibrate(config: CalibrateConfig) -> int:
    """`aligncap calibrate`: 1 where files could not be captioned."""
    clips = [u for u in read_manifest(config.manifest) if u.emotion in labels()]
    if len(clips) < FEWEST:
        raise UserError(f"{config.manifest}: {len(clips)} clips with a known emotion; {FEWEST} are needed")
    dtype = dtype_name(config.dtype, config.device)
    captioner = Captioner.from_pretrained(config.model, config.device, dtype)
    captioner.calibration = Calibration()
    jobs = [job_of(config.manifest, u) for u in clips]
    heard, errors = log_shares(captioner, jobs, config.batch_size)
    nothing, _ = log_shares(captioner, with_condition(jobs, clips, "noise"), config.batch_size)
    if len(heard) < FEWEST:
        raise UserError(f"{config.model}: names an emotion in {len(heard)} clips; {FEWEST} are needed")
    truth = {u.id: u.emotion for u in clips}
    named = np.array([labels().index(emotion) for emotion, _ in heard.values()])
    right = np.array([truth[name] == emotion for name, (emotion, _) in heard.items()])
    own, contentless = (np.array([row for _, row in part.values()]) for part in (heard, nothing))
    calibration, losses = fit(own, named, right, contentless.reshape(-1, len(labels())))
    record = {**asdict(calibration), "manifest": Path(config.manifest).name, "clips": len(own), **losses}
    write_json(Path(config.model) / CALIBRATION, record)
    for error in errors:
        print(error, file=sys.stderr)
    prior = "that of noise" if calibration.prior else "all alike"
    print(
        f"{Path(config.model) / CALIBRATION}: temperature {calibration.temperature:.2f}, prior {prior}; "
        f"log-loss of {len(own)} clips {losses['loss']:.3f}, before {losses['loss_before']:.3f}"
    )
    return 1 if errors else 0


def log_shares(
    captioner: Captioner, jobs: list[Job], batch_size: int
) -> tuple[dict[str, tuple[str, Floats]], list[str]]:
    """By id of each clip whose caption names an emotion: that, and log-shares of the labels; and errors."""
    journal = Journal(None, {})

    def say(clips: list[np.ndarray], jobs: list[Job], contexts: list[Tensor | None]) -> list[Row]:
        said = captioner.captions_with_confidence(clips, contexts, [job.cues for job in jobs])
        return [{} if named is None else named._asdict() for _, named in said]

    errors = over_clips(captioner, jobs, journal, say, batch_size, "calibration", every=jobs)
    found = {}
    for job in jobs:
        row = journal[job.key] if job.key in journal else {}
        if shares := row.get("probabilities"):
            found[job.id] = row["emotion"], np.log([max(shares[label], LEAST) for label in labels()])
    return found, errors


def fit(
    heard: Floats, named: Ints, right: NDArray[np.bool_], nothing: Floats
) -> tuple[Calibration, dict[str, float]]:
    """Temperature (Guo et al. 2017), and prior if it helps, of the least mean log-loss of the confidence.

    Not the loss of the true label: that is ruled by labels that a model hardly ever names.

    Args:
        heard: (clips, labels), log-shares; named: (clips,), the label that is named; right: whether it is.
        nothing: (clips, labels) of contentless clips, maybe none; the prior is their mean share, with one
            more clip in which all labels are alike.

    Returns:
        the calibration; "loss", and "loss_before" with temperature 1 and without prior.
    """

    def loss(temperature: float, prior: dict[str, float]) -> float:
        shares = Calibration(temperature, prior).probabilities(heard, labels())
        sure = shares[np.arange(len(named)), named]
        return float(-np.log(np.maximum(np.where(right, sure, 1 - sure), LEAST)).mean())

    number = len(labels())
    mean = (np.exp(nothing).sum(0) + 1 / number) / (len(nothing) + 1)
    found = []
    for prior in ({}, dict(zip(labels(), mean.tolist(), strict=True))):
        best = minimize_scalar(lambda t, p=prior: loss(float(np.exp(t)), p), bounds=np.log(RANGE))
        t = float(np.exp(best.x))
        found.append((loss(t, prior), t, prior))
    least, temperature, prior = found[found[1][0] < found[0][0] - GAIN]
    return Calibration(temperature, prior), {"loss": least, "loss_before": loss(1.0, {})}
