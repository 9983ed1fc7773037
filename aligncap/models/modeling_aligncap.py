"""The AlignCap model: speech encoder, projector, language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import encode_frames, pool_frames
from aligncap.models.projectors import StackMLPProjector


class AlignCapPreTrainedModel(PreTrainedModel):
    """Shared declarations for transformers."""

    config_class = AlignCapConfig
    base_model_prefix = "model"
    input_modalities: Any = ("audio", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


@dataclass
class PooledFrames:
    """Pooled encoder frames of a batch: what a feature cache stores.

    frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width);
    mask: (batch, pooled frames), bool, true on the clip's own frames.
    """

    frames: Tensor
    mask: Tensor


def make_projector(config: AlignCapConfig, text_width: int) -> StackMLPProjector:
    """A fresh projector of this configuration."""
    audio_config = cast(Any, config.audio_config)
    return StackMLPProjector(
        audio_config.d_model,
        text_width,
        hidden=config.projector_hidden,
        stack_size=config.stack_size,
        dropout=config.projector_dropout,
        summary_token=config.summary_token,
        speaker_relative=config.speaker_relative,
        speaker_dropout=config.speaker_dropout,
        mix_layers=audio_config.encoder_layers + 1 if config.encoder_layer == "mix" else 0,
    )


class AlignCapModel(AlignCapPreTrainedModel):
    """Everything but the language-model head."""

    def __init__(self, config: AlignCapConfig) -> None:
        super().__init__(config)
        audio_config: Any = config.audio_config
        text_config: Any = config.text_config
        self.audio_tower = AutoModel.from_config(audio_config).encoder
        self.language_model = AutoModel.from_config(text_config)
        self.multi_modal_projector = make_projector(
            config, self.language_model.get_input_embeddings().embedding_dim
        )
        self.post_init()
        # Children declare classes that are not here (Whisper's decoder layer), on which FSDP would stop.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = {name for name in self._no_split_modules or () if name in present}

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_audio(self, input_features: Tensor, input_features_mask: Tensor) -> PooledFrames:
        """Frozen part of the audio path: encoder and pooling. The margin of silence is cut off.

        Args:
            input_features: log-mel, (batch, mel bins, mel frames).
            input_features_mask: (batch, mel frames): 1 on the clip, 2 on its margin of silence, 0 on padding.
        """
        dtype = self.audio_tower.conv1.weight.dtype
        frames, _ = encode_frames(
            self.audio_tower, input_features.to(dtype), input_features_mask > 0, self.config.encoder_layer
        )
        own = (input_features_mask == 1)[:, ::2]
        own = nn.functional.pad(own, (0, frames.shape[1] - own.shape[1]))
        frames = frames * own.view(*own.shape, *[1] * (frames.dim() - 2))
        longest = int(own.sum(1).max())
        pooled, mask = pool_frames(frames[:, :longest], own[:, :longest], self.config.pool_size)
        return PooledFrames(pooled, mask)

    def get_audio_features(
        self, pooled: PooledFrames, speaker_means: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Audio tokens (batch, tokens, text width) and their mask."""
        return self.multi_modal_projector(pooled.frames, pooled.mask, speaker_means)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_frames: Tensor | None = None,
        audio_frames_mask: Tensor | None = None,
        speaker_means: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Audio comes as log-mel (`input_features`) or as cached pooled frames (`audio_frames`), not both.

        Args:
            speaker_means: mean pooled frame of each clip's speaker, (batch, width) or (batch, layers, width);
                a row of nan, or None: unknown. Used with `speaker_relative`.

        Raises:
            ValueError: placeholders and audio tokens differ in number.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds are needed")
            # The speaker's placeholder, where there is one, is the id above that of the audio.
            is_audio = input_ids >= self.config.audio_token_id
            inputs_embeds = self.get_input_embeddings()(input_ids)
            # Decoding steps hold no placeholder and audio stays in their arguments when frames are cached.
            prefill = past_key_values is None or past_key_values.get_seq_length() == 0
            if prefill and (input_features is not None or audio_frames is not None):
                pooled = (
                    PooledFrames(audio_frames, cast(Tensor, audio_frames_mask))
                    if audio_frames is not None
                    else self.encode_audio(cast(Tensor, input_features), cast(Tensor, input_features_mask))
                )
                tokens, mask = self.get_audio_features(pooled, speaker_means)
                wanted, given = is_audio.sum(1), mask.sum(1)
                if not torch.equal(wanted, given):
                    raise ValueError(
                        f"placeholders {wanted.tolist()} and audio tokens {given.tolist()} differ in number; "
                        "build inputs with AlignCapProcessor and never truncate them"
                    )
                inputs_embeds = inputs_embeds.masked_scatter(
                    is_audio[..., None], tokens[mask].to(inputs_embeds.dtype)
                )
            elif prefill and bool(is_audio.any()):
                raise ValueError("the text holds audio placeholders but no audio was given")
        if position_ids is None and attention_mask is not None and past_key_values is None:
            # Left padding must not move positions: a batch then equals its single rows.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class AlignCapForConditionalGeneration(AlignCapPreTrainedModel, GenerationMixin):
    """AlignCap with its language-model head."""

    def __init__(self, config: AlignCapConfig) -> None:
        super().__init__(config)
        self.model = AlignCapModel(config)
        embeddings = self.model.get_input_embeddings()
        self.lm_head = nn.Linear(embeddings.embedding_dim, embeddings.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            # Where the embedding lies differs from family to family (embed_tokens, wte,
            # decoder.embed_tokens).
            name = next(n for n, module in self.model.named_modules() if module is embeddings)
            self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_frames: Tensor | None = None,
        audio_frames_mask: Tensor | None = None,
        speaker_means: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            logits_to_keep: as in transformers; a bool mask (batch, length) gives logits (chosen positions,
                vocab).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_frames=audio_frames,
            audio_frames_mask=audio_frames_mask,
            speaker_means=speaker_means,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{k: v for k, v in kwargs.items() if k != "num_items_in_batch"},
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        # The placeholder and the padding of the vocabulary above it are no words: no mass, no sampling.
        logits[..., self.config.audio_token_id :] = torch.finfo(logits.dtype).min
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
