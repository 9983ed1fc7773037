"""The projector's tokens that are words: logistic regression on the encoder's hidden states, first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from aligncap.data.columns import columns_of
from aligncap.data.manifest import Utterance
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.projectors import clip_means
from aligncap.text.emotions import emotion_of
from aligncap.text.prompts import templates
from aligncap.training.caches import augmented_key
from aligncap.training.data import ClipInputs

WORDS_PENALTY = 0.5  # of the squared weights: chosen with a corpus left out in turn (docs/log.md)


def emotion_labels(utterances: Sequence[Utterance]) -> list[str | None]:
    """Emotion of each clip: its label or, without one, what most of its captions name."""
    found: list[str | None] = []
    for u in utterances:
        found.append(u.emotion or _said_emotion(u))
    return found


def _said_emotion(u: Utterance) -> str | None:
    named = Counter(label for caption in u.captions if (label := emotion_of(caption)))
    return named.most_common(1)[0][0] if named else None


def emotions_of(utterances: Sequence[Utterance]) -> list[str]:
    """All emotions of the clips, sorted (see `emotion_labels`); captions are read where there is no label."""
    columns = columns_of(utterances)
    said = {_said_emotion(utterances[i]) for i in np.flatnonzero(columns.emotion < 0).tolist()}
    return sorted({*columns.named("emotion"), *filter(None, said)})


def fit_words(
    model: AlignCapForConditionalGeneration,
    inputs: ClipInputs,
    keys: Sequence[str],
    utterances: Sequence[Utterance],
) -> None:
    """Fit the projector's tokens that are words (`WordToken`): who speaks, and which emotion.

    A multinomial logistic regression on the means of the encoder's middle layers, of clips as they are and,
    with `inputs.augment`, through another channel. Corpora, and labels within them, weigh alike.

    Args:
        keys, utterances: of the clips, each once.
    """
    projector, config = model.model.multi_modal_projector, model.config
    emotions, speakers = emotion_labels(utterances), list(config.speakers)
    word = dict(zip(templates()["speakers"], speakers, strict=bool(speakers)))  # by gender
    words = [word.get(u.gender or "") for u in utterances]
    corpora = [u.corpus for u in utterances]
    assert inputs.features is not None
    versions = [keys, [augmented_key(key) for key in keys]] if inputs.augment else [keys]
    means = np.concatenate([_means(inputs.features[name] for name in names) for names in versions])
    for token, labels, names in (
        (projector.speaker, words, speakers),
        (projector.emotion, emotions, list(config.emotions)),
    ):
        used = [i for i, label in enumerate(labels) if label in names]
        if token is None or len({labels[i] for i in used}) < 2:
            continue
        targets = [names.index(str(labels[i])) for i in used]
        weights = _even(list(zip((corpora[i] for i in used), targets, strict=True)))
        rows = [i + len(keys) * n for n in range(len(versions)) for i in used]
        weight, bias = _logistic(means[rows], targets * len(versions), weights * len(versions), len(names))
        token.weight.copy_(torch.from_numpy(weight))
        token.bias.copy_(torch.from_numpy(bias))
        token.usual.copy_(token.logits(torch.from_numpy(means[used])).T @ torch.tensor(weights) / len(used))


def _means(frames: Iterable[Tensor]) -> np.ndarray:
    """`clip_means` of each clip, (clips, inputs), float32."""
    rows = (clip_means(f[None], torch.ones(1, len(f), dtype=torch.bool))[0] for f in frames)
    return torch.stack(list(rows)).numpy()


def _even(kinds: Sequence[tuple[str, int]]) -> list[float]:
    """Weights of mean 1 under which corpora count alike, and the labels of a corpus.

    >>> _even([("a", 0), ("a", 0), ("a", 1), ("b", 0)])
    [0.5, 0.5, 1.0, 2.0]
    """
    count, labels = Counter(kinds), Counter(corpus for corpus, _ in set(kinds))
    corpora = len(labels)
    return [len(kinds) / (corpora * labels[corpus] * count[corpus, k]) for corpus, k in kinds]


def _logistic(
    features: np.ndarray, targets: Sequence[int], weights: Sequence[float], words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (words, width) and biases (words,) on raw features; a word without clips is never said."""
    from sklearn.linear_model import LogisticRegression  # not needed to train without words

    mean, std = features.mean(0), np.maximum(features.std(0), 1e-5)
    inverse = 1 / (2 * len(targets) * WORDS_PENALTY)
    fitted = LogisticRegression(C=inverse, max_iter=300).fit((features - mean) / std, targets, weights)
    own, bias = fitted.coef_, fitted.intercept_
    if len(own) == 1:  # two words: scikit-learn keeps the second one's
        own, bias = np.concatenate([-own, own]) / 2, np.concatenate([-bias, bias]) / 2
    weight, biases = np.zeros((words, features.shape[1])), np.full(words, -30.0)
    weight[fitted.classes_] = own / std
    biases[fitted.classes_] = bias - weight[fitted.classes_] @ mean
    return weight, biases
