"""Configuration of emotion2vec (Ma et al. 2023, arXiv 2312.15185)."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig


class Emotion2vecConfig(PreTrainedConfig):
    """Sizes of emotion2vec; those of the base models by default. Names are those of data2vec-audio.

    Args:
        num_conv_pos_embeddings: convolutions over positions, one after the other, of `conv_pos_kernel_size`.
        extra_tokens: learnt tokens that stand before the frames in every layer, and are left out of what it
            gives.
        alibi_scales: learnt scales of how attention falls off with distance: of layers and heads, each 1 or
            their number.
    """

    model_type = "emotion2vec"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] | list[int] = (512,) * 7
    conv_kernel: tuple[int, ...] | list[int] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] | list[int] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 5
    conv_pos_kernel_size: int = 19
    num_conv_pos_embedding_groups: int = 16
    extra_tokens: int = 10
    alibi_scales: tuple[int, ...] | list[int] = (1, 12)
    initializer_range: float = 0.02


AutoConfig.register(Emotion2vecConfig.model_type, Emotion2vecConfig)
