"""The mean voice of a speaker, against which a clip is heard (`speaker_relative`).

It is the mean pooled encoder frame over some of the speaker's clips, of which no label or caption is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aligncap.data.manifest import Utterance

CLIPS = 32  # of one speaker, evenly over the manifest: more do not move the mean
FEWEST = 4  # with fewer, the mean tells what is said now more than who speaks: an unknown speaker


def speaker_name(utterance: Utterance) -> str | None:
    """A speaker's name across corpora: "ravdess/ravdess-01"."""
    return f"{utterance.corpus}/{utterance.speaker}" if utterance.speaker else None


def chosen_clips(speakers: Sequence[str | None], clips: int = CLIPS) -> dict[str, list[int]]:
    """Places of the clips whose mean stands for each speaker.

    >>> chosen_clips(["a", "b", "a", "a", "a", "a", None], clips=4)
    {'a': [0, 2, 3, 5]}
    """
    places: dict[str, list[int]] = {}
    for place, speaker in enumerate(speakers):
        if speaker is not None:
            places.setdefault(speaker, []).append(place)
    found = {}
    for speaker, own in places.items():
        if len(own) >= FEWEST:
            number = min(clips, len(own))
            found[speaker] = [own[i * (len(own) - 1) // max(number - 1, 1)] for i in range(number)]
    return found


def mean_frame(clips: Sequence[Tensor]) -> Tensor:
    """Mean over clips of each one's mean pooled frame: (width,) or (layers, width), float32."""
    return torch.stack([clip.float().mean(0) for clip in clips]).mean(0)


def stack_means(means: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """One row a clip, nan where the speaker is unknown; `like` has the shape of a row."""
    unknown = torch.full_like(like, torch.nan, dtype=torch.float32)
    return torch.stack([unknown if mean is None else mean.float() for mean in means])


def means_of_rows(speakers: Sequence[str | None], frames: Mapping[int, Tensor]) -> list[Tensor | None]:
    """Of each clip the mean of its speaker.

    Args:
        frames: pooled frames of the places that `chosen_clips` names; those that are missing, because the
            file cannot be read, are passed over.
    """
    means = {}
    for speaker, places in chosen_clips(speakers).items():
        own = [frames[i] for i in places if i in frames]
        if len(own) >= FEWEST:
            means[speaker] = mean_frame(own)
    return [means.get(s) if s is not None else None for s in speakers]
