"""What other clips tell about a clip: how far the emotion logits of its session or speaker lie off the usual.

Rooms, microphones and voices move the logits of all clips that share them. The mean of such clips shows by
how much, but where they share a mood it shows the mood too, and to take it away would do harm. So it is
taken away only as far as it is known (`SHRINK`) and as the clips differ among themselves (`VARIETY`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from aligncap.data.manifest import Utterance

Kind = Literal["speaker", "session"]
CLIPS = 64  # of one group, evenly over the manifest: more do not move the mean
FEWEST: dict[Kind, int] = {"speaker": 8, "session": 16}  # fewer do not tell one mood from several
SHRINK = 4.0  # a mean of n clips counts n / (n + 4)
# `variety` of the clips, in nats, at which their mean begins to count, and counts in full: chosen on corpora
# left out of training (docs/log.md). Voices of a session differ beside moods.
VARIETY: dict[Kind, tuple[float, float]] = {"speaker": (0.33, 0.42), "session": (0.40, 0.48)}


def speaker_name(utterance: Utterance) -> str | None:
    """A speaker's name across corpora: "ravdess/ravdess-01"."""
    return f"{utterance.corpus}/{utterance.speaker}" if utterance.speaker else None


def group_of(utterance: Utterance, kind: Kind | None) -> str | None:
    """The clips that an utterance is heard beside: its speaker's; those of its session (`extra.session`) or,
    where sessions are not named, of its corpus; None: it is heard alone."""
    if kind is None:
        return None
    session = (utterance.extra or {}).get("session", "")
    return speaker_name(utterance) if kind == "speaker" else f"{utterance.corpus}/{session}"


def chosen_clips(groups: Sequence[str | None], fewest: int, clips: int = CLIPS) -> dict[str, list[int]]:
    """Places of the clips that stand for each group of `fewest` or more.

    >>> chosen_clips([*"aabaaaaaaa", None], fewest=2, clips=4)
    {'a': [0, 3, 6, 9]}
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        if group is not None:
            places.setdefault(group, []).append(place)
    found = {}
    for group, own in places.items():
        if len(own) >= fewest:
            number = min(clips, len(own))
            found[group] = [own[i * (len(own) - 1) // max(number - 1, 1)] for i in range(number)]
    return found


def variety(logits: Tensor) -> float:
    """How much the clips differ in mood, in nats: what a clip tells of emotion once their mean is taken away.

    The mutual information of clip and emotion: entropy of the mean share less the mean entropy of shares.

    Args:
        logits: (clips, emotions).
    """
    share = (logits - logits.mean(0)).softmax(-1).clamp(min=1e-9)
    mean = share.mean(0)
    return float((share * share.log()).sum(-1).mean() - (mean * mean.log()).sum())


def offset(logits: Tensor, usual: Tensor, kind: Kind) -> Tensor:
    """What to take from the emotion logits of clips recorded alike, (emotions,); 0 where that is not known.

    Args:
        logits: (clips, emotions) of clips of one speaker or session, without a label.
        usual: (emotions,), the mean over training clips.
    """
    number, (low, high) = len(logits), VARIETY[kind]
    if number < FEWEST[kind]:
        return torch.zeros_like(usual)
    share = min(max((variety(logits) - low) / (high - low), 0.0), 1.0) * number / (number + SHRINK)
    return share * (logits.mean(0) - usual)
