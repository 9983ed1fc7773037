"""What emotion2vec reads: the waveform, of mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import AutoFeatureExtractor
from transformers.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor

from aligncap.models.configuration_emotion2vec import Emotion2vecConfig


class Emotion2vecFeatureExtractor(Wav2Vec2FeatureExtractor):
    """As of wav2vec 2.0, with the constant of a layer norm, as FunASR has it: 1e-5 matters in quiet clips."""

    @staticmethod
    def zero_mean_unit_var_norm(
        input_values: Sequence[np.ndarray],
        attention_mask: Sequence[np.ndarray] | None,
        padding_value: float = 0.0,
    ) -> list[np.ndarray]:
        masks = [np.ones(len(v)) for v in input_values] if attention_mask is None else attention_mask
        found = []
        for values, mask in zip(input_values, masks, strict=True):
            own = values[: int(np.sum(mask))]
            scaled = np.full_like(values, padding_value)
            scaled[: len(own)] = (own - own.mean()) / np.sqrt(own.var() + 1e-5)
            found.append(scaled)
        return found


AutoFeatureExtractor.register(Emotion2vecConfig, Emotion2vecFeatureExtractor)
