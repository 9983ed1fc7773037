"""What a recording's utterances say together: emotions over time that keep real changes, and who speaks.

An utterance alone is often misread. A hidden Markov model weighs each against its neighbours: the emotion of
a speaker lasts (`DWELL`), and what is read of an utterance is right with some probability (`TRUST`). The
likeliest sequence (Viterbi 1967) drops a reading that stands alone and keeps a change that lasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.statistics import Floats, Ints

# Chosen on the dev speakers of RAVDESS, as F1 of changes against changes found where there are none
# (docs/timeline.md).
DWELL = 60.0  # seconds that an emotion lasts on average
TRUST = 0.9  # of a reading; the rest of its mass is spread over all emotions
MOST_SPEAKERS = 8  # looked for where their number is not given
SAME_VOICE = 0.15  # silhouette below which all utterances are one speaker's


def likeliest_path(
    probabilities: Floats, centres: Floats, dwell: float = DWELL, trust: float = TRUST
) -> Ints:
    """Place of the emotion of each utterance of one speaker, (utterances,).

    Args:
        probabilities: (utterances, emotions), what is read of each alone; rows of equal shares tell nothing.
        centres: (utterances,), seconds, rising.
        dwell: seconds that an emotion lasts on average; trust: see the module.
    """
    number, states = probabilities.shape
    if number == 0 or states < 2:
        return np.zeros(number, dtype=np.int64)
    emission = np.log(trust * probabilities + (1 - trust) / states)
    score, back = emission[0].copy(), np.zeros((number, states), dtype=np.int64)
    for step in range(1, number):
        gap = max(centres[step] - centres[step - 1], 1e-3)
        # After a long pause what was before tells nothing: no emotion is then likelier than another.
        stay = max(float(np.exp(-gap / dwell)), 1 / states)
        moves = np.full((states, states), np.log((1 - stay) / (states - 1)))
        np.fill_diagonal(moves, np.log(stay))
        reached = score[:, None] + moves
        back[step] = reached.argmax(0)
        score = reached.max(0) + emission[step]
    path = np.zeros(number, dtype=np.int64)
    path[-1] = score.argmax()
    for step in range(number - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def speakers_of(voices: Floats, number: int = 0) -> Ints:
    """Speaker of each utterance, numbered in the order in which they are first heard, (utterances,).

    Agglomerative clustering by cosine distance with average linkage, of voices standardised over the
    recording.

    Args:
        voices: (utterances, width), what is known of each voice.
        number: of speakers; 0: the number with the best silhouette, one where none separates them.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    most = min(number or MOST_SPEAKERS, len(voices))
    if most < 2:
        return np.zeros(len(voices), dtype=np.int64)
    deviation = voices.std(0)
    x = (voices - voices.mean(0)) / np.where(deviation > 0, deviation, 1)

    def clusters(n: int) -> Ints:
        return AgglomerativeClustering(n, metric="cosine", linkage="average").fit_predict(x)

    if number:
        return _in_order(clusters(most))
    best, found = SAME_VOICE, np.zeros(len(x), dtype=np.int64)
    for n in range(2, min(most, len(x) - 1) + 1):
        own = clusters(n)
        if np.unique(own, return_counts=True)[1].min() < 2:
            continue  # a single utterance is an outlier, not a speaker
        if (score := float(silhouette_score(x, own, metric="cosine"))) > best:
            best, found = score, own
    return _in_order(found)


def _in_order(groups: NDArray[np.int64]) -> Ints:
    order = list(dict.fromkeys(groups.tolist()))
    return np.array([order.index(group) for group in groups.tolist()], dtype=np.int64)


def transition_f1(
    found: Sequence[float], truth: Sequence[float], within: float = 1.0
) -> tuple[float, float, float]:
    """Precision, recall and F1 of change points, each paired with one at most, `within` seconds apart.

    Without changes on either side all three are 1.

    >>> transition_f1([10.2, 30.0], [10.0, 20.0])
    (0.5, 0.5, 0.5)
    """
    left = sorted(truth)
    hits = 0
    for time in sorted(found):
        near = [t for t in left if abs(t - time) <= within]
        if near:
            left.remove(near[0])
            hits += 1
    if not found and not truth:
        return 1.0, 1.0, 1.0
    precision = hits / len(found) if found else 0.0
    recall = hits / len(truth) if truth else 0.0
    return precision, recall, 2 * hits / (len(found) + len(truth))
