"""Configuration of the AlignCap model."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

import aligncap.models.configuration_emotion2vec  # noqa: F401  an encoder that transformers has not


class AlignCapConfig(PreTrainedConfig):
    """Speech encoder -> pool -> projector -> causal LLM.

    Args:
        audio_config: configuration of the speech encoder (of `models.encoders.FAMILIES`).
        text_config: configuration of the language model (any causal LM).
        audio_token_id: placeholder in the token ids, the speaker's being the next. It is the first id past
            the tokenizer's own vocabulary: that id and all above it are masked out of the logits, so never
            generated.
        encoder_layer: what the projector reads. "last": the encoder's normalised output; "mix": a learnt
            weighted sum of all hidden states; an int k: the hidden state after k layers (0 = embeddings).
        pool_size: encoder frames (20 ms each) averaged into one, without parameters.
        projector_type: key of `aligncap.models.projectors.PROJECTORS`.
        stack_size: pooled frames that become one audio token of the LLM.
        queries: audio tokens that a clip becomes, however long it is; 0: one for every `stack_size` frames.
        projector_hidden: width of the projector's hidden layer.
        projector_dropout: dropout on the projector's input and hidden layer.
        summary_token: put a token made of the clip's mean and standard deviation before the frame tokens.
        speakers: words for who speaks, one of which the clip's first token says; none: no such token.
        emotions: labels, one of which the next token says in the LLM's words; none: no such token.
        margin_seconds: silence appended to a clip before the encoder, which it needs to close a sentence;
            its frames are seen by the encoder and not by the LLM.
        max_seconds: longest clip; at most the encoder's positions allow.
        max_response_tokens: longest caption in training, and the default limit when captions are generated.
    """

    model_type = "aligncap"
    # A class attribute, not a field: trl reads it, a serialised field breaks AutoConfig.
    auto_map: ClassVar[dict[str, str]] = {}
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 0
    encoder_layer: int | str = "last"
    pool_size: int = 16
    projector_type: str = "mlp"
    stack_size: int = 4
    queries: int = 0
    projector_hidden: int = 512
    projector_dropout: float = 0.3
    summary_token: bool = True
    speakers: list[str] | tuple[str, ...] = ()
    emotions: list[str] | tuple[str, ...] = ()
    margin_seconds: float = 1.0
    max_seconds: float = 29.0
    max_response_tokens: int = 64
    tie_word_embeddings: bool = False

    @property
    def audio_width(self) -> int:
        """Width of the encoder's hidden states."""
        config = self.sub_config("audio_config")
        return int(getattr(config, "hidden_size", 0) or config.d_model)

    @property
    def clip_tokens(self) -> int:
        """Audio tokens that stand for the whole clip, the speaker's not among them."""
        return int(self.summary_token) + int(bool(self.emotions))

    @property
    def mixed_layers(self) -> int:
        """Hidden states that the projector mixes; 0: it reads a single one."""
        layers = int(self.sub_config("audio_config").num_hidden_layers)
        return layers + 1 if self.encoder_layer == "mix" else 0

    def sub_config(self, name: str) -> PreTrainedConfig:
        """`audio_config` or `text_config`, made an object by transformers when this one was made."""
        found = getattr(self, name)
        assert isinstance(found, PreTrainedConfig)
        return found


AutoConfig.register(AlignCapConfig.model_type, AlignCapConfig)
