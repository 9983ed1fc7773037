"""`aligncap probe`: what a linear classifier finds in the frozen encoder's features, layer by layer.

It is a baseline: a captioner that names emotions worse than this does not yet use what its own encoder hears.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.audio.members import size_of
from aligncap.data.clip_files import audio_files
from aligncap.data.manifest import read_manifest
from aligncap.evaluation.scoring import Baseline
from aligncap.models.build import load_encoder
from aligncap.models.encoders import encode_frames, family_of, own_frames
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_json
from aligncap.utils.options import Config, option
from aligncap.utils.run_record import file_hashes
from aligncap.utils.statistics import Floats, Ints, recall_sums, uar
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint

PENALTIES = (1e-3, 1e-2, 1e-1)  # of the weights' squares; the one that is best on dev is taken


@dataclass
class ProbeConfig(Config):
    """Emotion UAR of a linear classifier on each layer of the frozen speech encoder, a baseline.

    Examples:
        aligncap probe --train train.jsonl --dev dev.jsonl --test test.jsonl --out probe.json
    """

    train: str = option(help="Manifest with emotion labels to fit on.")
    dev: str = option(help="Manifest that chooses penalty and layer.")
    test: list[str] = option(help="Manifests to score on, each of another name.")
    encoder: str = option("whisper-base", "Speech encoder: a default model, a folder or a hub name.")
    cache_dir: str = option("runs/cache", "Folder in which features are kept.")
    out: str | None = option(None, "JSON to write, which `evaluate` and `zeroshot` take as --probe.")

    def own_errors(self) -> list[str]:
        names = [Path(path).stem for path in self.test]
        if len(set(names)) < len(names) or {"dev", "layer", "penalty"} & set(names):
            return [f"test={' '.join(self.test)}: test manifests need names of their own, and not dev"]
        return []


def run_probe(config: ProbeConfig) -> int:
    """`aligncap probe`: fit, print a table of layers, write --out."""
    result = probe(config)
    if config.out:
        write_json(config.out, result)
    names = ["dev", *(Path(path).stem for path in config.test)]
    table = Table("layer", *(f"UAR {n}" for n in names), title=f"linear probe on {config.encoder}")
    for row in result["layers"]:
        mark = " (best on dev)" if row["layer"] == result["best_layer"] else ""
        table.add_row(f"{row['layer']}{mark}", *(f"{row[n]:.3f}" for n in names))
    Console().print(table)
    return 0


def probe(config: ProbeConfig) -> Row:
    """Fit one probe a layer on the training set, choose its penalty on dev, score it on each test set.

    On a test set with fewer labels only those labels compete, as a captioner's words are scored.

    Returns:
        {"encoder", "labels", "layers": [{"layer", "penalty", "dev": UAR, "<test manifest's stem>": UAR …}],
        "best_layer": the layer best on dev, "tests": SHA-256 of each test manifest}

    Raises:
        UserError: no labels, or fewer than two; a sound file that is missing or has changed.
    """
    manifests = [config.train, config.dev, *config.test]
    utterances = [[u for u in read_manifest(m) if u.emotion] for m in manifests]
    labels = sorted({str(u.emotion) for u in utterances[0]})
    if len(labels) < 2:
        raise UserError(f"{config.train}: a probe needs at least two emotion labels, found {labels}")
    for i in range(1, len(utterances)):
        utterances[i] = [u for u in utterances[i] if u.emotion in labels]
        if not utterances[i]:
            raise UserError(f"{manifests[i]}: no clip has a label of {config.train} ({', '.join(labels)})")
    files = [audio_files(m, us) for m, us in zip(manifests, utterances, strict=True)]
    cache = mean_layers({k: p for _, paths in files for k, p in paths.items()}, config)
    features = [torch.stack([cache[key] for key in keys]) for keys, _ in files]
    targets = [np.array([labels.index(str(u.emotion)) for u in us]) for us in utterances]
    names = ["dev", *(Path(path).stem for path in config.test)]

    layers = [
        {"layer": i, **probe_layer([f[:, i].numpy() for f in features], targets, names)}
        for i in range(features[0].shape[1])
    ]
    return {
        "encoder": config.encoder,
        "labels": labels,
        "layers": layers,
        "best_layer": max(layers, key=lambda row: row["dev"])["layer"],
        "tests": file_hashes(config.test),
    }


@torch.no_grad()
def mean_layers(files: Mapping[str, Path], config: ProbeConfig) -> TensorCache:
    """Of each file, by its hash, the mean over time of every hidden state, (layers + 1, width)."""
    model, extractor = load_encoder(config.encoder)
    family = family_of(model.config)
    processor = AlignCapProcessor.__new__(AlignCapProcessor)  # features need no tokenizer
    processor.feature_extractor, processor.encoder = extractor, model.config.model_type
    processor.margin_seconds, processor.max_seconds = family.margin_seconds, 29.0
    description = {
        "kind": "mean of every layer",
        "encoder": fingerprint(model),
        "features": extractor.to_dict(),
        "margin_seconds": processor.margin_seconds,
        "audio_version": AUDIO_VERSION,
    }
    cache = TensorCache(Path(config.cache_dir) / f"layers-{digest(description)}", description)

    def compute(batch: Sequence[str]) -> dict[str, Tensor]:
        read = processor.features([load_audio(files[k], max_seconds=processor.max_seconds) for k in batch])
        mask = read["input_features_mask"]
        frames, _ = encode_frames(model, read["input_features"], mask > 0, "mix")
        own = own_frames(mask, family, frames.shape[1])[..., None, None].float()
        return dict(zip(batch, ((frames * own).sum(1) / own.sum(1)).clone(), strict=True))

    fill(cache, sorted(files, key=lambda k: size_of(files[k])), compute, 8, "probing layers")
    return cache


def probe_layer(features: list[Floats], targets: list[Ints], names: Sequence[str]) -> dict[str, float]:
    """UAR on each set after the first, which is fitted, by `names`, with the penalty that is best on dev."""
    mean, std = features[0].mean(0), np.maximum(features[0].std(0, ddof=1), 1e-5)
    features = [(f - mean) / std for f in features]
    scored = []
    for penalty in PENALTIES:
        model = fit_logistic(features[0], targets[0], penalty)
        scores = [_score(model, f, t) for f, t in zip(features[1:], targets[1:], strict=True)]
        scored.append((scores[0], penalty, scores))
    _, penalty, scores = max(scored)
    return {"penalty": penalty, **dict(zip(names, scores, strict=True))}


def fit_logistic(features: Floats, targets: Ints, penalty: float) -> LogisticRegression:
    """Multinomial logistic regression: cross-entropy with labels weighted alike + penalty · |weights|²."""
    inverse = 1 / (2 * len(targets) * penalty)
    return LogisticRegression(C=inverse, class_weight="balanced", max_iter=1000).fit(features, targets)


def _score(model: LogisticRegression, features: Floats, targets: Ints) -> float:
    """UAR where only the labels that occur in `targets` compete."""
    present = np.unique(targets)
    said = present[model.predict_log_proba(features)[:, np.searchsorted(model.classes_, present)].argmax(1)]
    return float(uar(recall_sums(targets.tolist(), said.tolist(), present.tolist()).sum(axis=0)))


def read_probe(path: str | Path, manifest: str | Path) -> list[Baseline]:
    """UAR of a linear probe (`aligncap probe --out`) on the test set of this manifest.

    Best layer on dev, and the last.

    Raises:
        UserError: the file is no probe's output, or was made for other test sets.
    """
    name, kind = Path(manifest).stem, "logistic regression on the mean of the encoder's frames"
    chosen = "; the layer that is best on the dev set"
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        last = result["layers"][-1]
        rows = [(_best(result), kind + chosen), (last, f"{kind}; the encoder's last layer")]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"{path}: no output of `aligncap probe` ({error})") from error
    if name not in last or file_hashes([manifest])[str(manifest)] not in result.get("tests", {}).values():
        raise UserError(f"{path}: holds no score for {name!r}; run `aligncap probe` with --test {manifest}")
    return [
        Baseline(f"linear probe, layer {row['layer']}", {"emotion_uar": row[name]}, note)
        for row, note in rows
    ]


def _best(part: Row) -> Row:
    return next(row for row in part["layers"] if row["layer"] == part["best_layer"])
