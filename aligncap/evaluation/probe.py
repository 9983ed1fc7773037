"""The baseline: what a linear classifier hears in the frozen encoder's features, layer by layer.

A captioner that names emotions worse than this does not yet use what its own encoder hears.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.models.encoders import encode_frames
from aligncap.models.hub import resolve
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.speakers import means_of_rows, speaker_name
from aligncap.utils.errors import UserError
from aligncap.utils.io import file_sha256
from aligncap.utils.run_record import file_hashes
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint


@torch.no_grad()
def pooled_layers(files: list[Path], encoder: str, cache_dir: Path) -> Tensor:
    """Mean over time of every hidden state, (clips, layers + 1, width); computed once a file."""
    folder = resolve(encoder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    processor = AlignCapProcessor.__new__(AlignCapProcessor)  # log-mel needs no tokenizer
    processor.feature_extractor, processor.margin_seconds, processor.max_seconds = extractor, 1.0, 29.0
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).encoder.eval()
    description = {
        "kind": "mean of every layer",
        "encoder": fingerprint(model),
        "features": extractor.to_dict(),
        "margin_seconds": processor.margin_seconds,
        "audio_version": AUDIO_VERSION,
    }
    cache = TensorCache(cache_dir / f"layers-{digest(description)}", description)
    keys = {file_sha256(path): path for path in files}

    def compute(batch: Sequence[str]) -> dict[str, Tensor]:
        mel = processor.log_mel([load_audio(keys[k], max_seconds=29.0) for k in batch])
        frames, _ = encode_frames(model, mel["input_features"], mel["input_features_mask"] > 0, "mix")
        own = (mel["input_features_mask"] == 1)[:, ::2][:, :, None, None].float()
        return dict(zip(batch, ((frames * own).sum(1) / own.sum(1)).clone(), strict=True))

    fill(cache, sorted(keys, key=lambda k: keys[k].stat().st_size), compute, 8, "probing layers")
    return torch.stack([cache[file_sha256(path)] for path in files])


def fit_logistic(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS, classes weighted alike.

    Args:
        features: (clips, width), standardised; labels: (clips,).

    Returns:
        Weights (width + 1, classes), the last row the bias.
    """
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1)
    weight = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    balance = len(labels) / (classes * counts.float())
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weight, labels, weight=balance)
        loss = loss + penalty * (weight[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def uar(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted average recall over the labels that occur."""
    return float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


def probe(
    train: Path,
    dev: Path,
    tests: list[Path],
    encoder: str,
    cache_dir: Path,
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1),
) -> dict[str, Any]:
    """Fit one probe a layer on `train`, choose its penalty on `dev`, score it on each of `tests`.

    On a test set with fewer labels only those labels compete, as a captioner's words are scored.

    The same is done once more with each clip's features less the mean of its speaker's clips ("relative"),
    as a student with `speaker_relative` hears them.

    Returns:
        {"encoder", "labels", "layers": [{"layer", "penalty", "dev": UAR, "<test manifest's stem>": UAR …}],
        "best_layer": the layer best on dev, "relative": {"layers", "best_layer"}, "tests": SHA-256 of each
        test manifest}

    Raises:
        UserError: no labels, or fewer than two.
    """
    stems = [path.stem for path in tests]
    if len(set(stems)) < len(stems) or {"dev", "layer", "penalty"} & set(stems):
        raise UserError(
            f"--test {' '.join(map(str, tests))}: test manifests need names of their own, and not dev"
        )
    manifests = [train, dev, *tests]
    utterances = [[u for u in read_manifest(m) if u.emotion] for m in manifests]
    labels = sorted({u.emotion for u in utterances[0] if u.emotion})
    if len(labels) < 2:
        raise UserError(f"{train}: a probe needs at least two emotion labels, found {labels}")
    for i in range(1, len(utterances)):
        utterances[i] = [u for u in utterances[i] if u.emotion in labels]
        if not utterances[i]:
            raise UserError(f"{manifests[i]}: no clip has a label of {train} ({', '.join(labels)})")
    features = [
        pooled_layers([audio_path(m, u) for u in us], encoder, cache_dir)
        for m, us in zip(manifests, utterances, strict=True)
    ]
    targets = [torch.tensor([labels.index(_label(u)) for u in us]) for us in utterances]
    relative = [
        about_speakers(f, [speaker_name(u) for u in us]) for f, us in zip(features, utterances, strict=True)
    ]

    def fit(inputs: list[Tensor]) -> dict[str, Any]:
        layers = []
        for layer in range(inputs[0].shape[1]):
            own = [part[:, layer] for part in inputs]
            row = _probe_layer(own, targets, len(labels), penalties, ["dev", *(m.stem for m in tests)])
            layers.append({"layer": layer, **row})
        return {"layers": layers, "best_layer": max(layers, key=lambda row: row["dev"])["layer"]}

    return {
        "encoder": encoder,
        "labels": labels,
        **fit(features),
        "relative": fit(relative),
        "tests": file_hashes(list(tests)),
    }


def about_speakers(features: Tensor, speakers: Sequence[str | None]) -> Tensor:
    """Features (clips, layers, width) less the mean over clips of their speaker; unknown: less that of all.

    As the student hears them: speakers of few clips count as unknown, see `aligncap.models.speakers`.
    """
    means = means_of_rows(speakers, {i: f[None] for i, f in enumerate(features)})
    every = features.mean(0)
    return features - torch.stack([every if mean is None else mean for mean in means])


def _probe_layer(
    inputs: list[Tensor],
    targets: list[Tensor],
    classes: int,
    penalties: tuple[float, ...],
    names: list[str],
) -> dict[str, float]:
    """UAR on each set after the first, which is fitted, by `names`, with the penalty that is best on dev."""
    mean, spread = inputs[0].mean(0), inputs[0].std(0).clamp(min=1e-5)
    inputs = [(f - mean) / spread for f in inputs]
    scored = []
    for penalty in penalties:
        weight = fit_logistic(inputs[0], targets[0], classes, penalty)
        scores = [_score(x, y, weight) for x, y in zip(inputs[1:], targets[1:], strict=True)]
        scored.append((scores[0], penalty, scores))
    _, penalty, scores = max(scored)
    return {"penalty": penalty, **dict(zip(names, scores, strict=True))}


def _label(utterance: Utterance) -> str:
    return str(utterance.emotion)


def _score(features: Tensor, labels: Tensor, weight: Tensor) -> float:
    logits = features @ weight[:-1] + weight[-1]
    present = torch.zeros(logits.shape[1], dtype=torch.bool)
    present[labels.unique()] = True
    return uar(logits.masked_fill(~present, -torch.inf).argmax(1).numpy(), labels.numpy())
