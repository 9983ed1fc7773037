"""The AlignCap model: speech encoder, projector, language model."""

from __future__ import annotations

import logging
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

import aligncap.models.modeling_emotion2vec  # noqa: F401  an encoder that transformers has not
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import encode_frames, encoder_of, family_of, own_frames, pool_frames
from aligncap.models.model_card import write_model_card
from aligncap.models.projectors import Projector, make_projector
from aligncap.utils.errors import UserError

_log = logging.getLogger(__name__)


class AlignCapPreTrainedModel(PreTrainedModel):
    """Shared declarations for transformers."""

    config: AlignCapConfig
    config_class = AlignCapConfig
    base_model_prefix = "model"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class PooledFrames(NamedTuple):
    """Pooled encoder frames of a batch: what a feature cache stores.

    frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width);
    mask: (batch, pooled frames), bool, true on the clip's own frames.
    """

    frames: Tensor
    mask: Tensor


def _name_layers(model: AlignCapPreTrainedModel) -> None:
    """Children declare classes that are not here (Whisper's decoder layer), on which FSDP would stop."""
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = {name for name in model._no_split_modules or () if name in present}


class AlignCapModel(AlignCapPreTrainedModel):
    """Everything but the language-model head."""

    multi_modal_projector: Projector

    def __init__(self, config: AlignCapConfig) -> None:
        super().__init__(config)
        self.audio_tower: PreTrainedModel | None = encoder_of(
            AutoModel.from_config(config.sub_config("audio_config"))
        )
        self.language_model: PreTrainedModel = AutoModel.from_config(config.sub_config("text_config"))
        width = self.language_model.get_input_embeddings().embedding_dim
        self.multi_modal_projector = make_projector(config, width)
        self.post_init()
        _name_layers(self)

    def train(self, mode: bool = True) -> AlignCapModel:
        """As of any module; the encoder's dropout, dropped layers and masked frames stay off."""
        super().train(mode)
        if self.audio_tower is not None:
            self.audio_tower.eval()
        return self

    def encode_audio(self, input_features: Tensor, input_features_mask: Tensor) -> PooledFrames:
        """Frozen part of the audio path: encoder and pooling. The margin of silence is cut off.

        Args:
            input_features: what the encoder reads, as `AlignCapProcessor.features` gives it.
            input_features_mask: (batch, positions): 1 on the clip, 2 on its margin of silence, 0 on padding.
        """
        if self.audio_tower is None:
            raise RuntimeError("the encoder was left out, since features are cached: give audio_frames")
        features = input_features.to(self.audio_tower.dtype)
        frames, _ = encode_frames(
            self.audio_tower, features, input_features_mask > 0, self.config.encoder_layer
        )
        own = own_frames(input_features_mask, family_of(self.audio_tower.config), frames.shape[1])
        frames = frames * own.view(*own.shape, *[1] * (frames.dim() - 2))
        longest = int(own.sum(1).max())
        return PooledFrames(*pool_frames(frames[:, :longest], own[:, :longest], self.config.pool_size))

    def get_audio_features(
        self, pooled: PooledFrames, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Audio tokens (batch, tokens, text width) and their mask."""
        return self.multi_modal_projector(pooled.frames, pooled.mask, context)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_frames: Tensor | None = None,
        audio_frames_mask: Tensor | None = None,
        context: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Audio comes as the encoder reads it (`input_features`) or as cached pooled frames (`audio_frames`).

        Args:
            position_ids: (rows, length); where texts share a row, from 0 for each text, without an attention
                mask and with `use_cache` false (`training.packing`). The clips are then those of the texts,
                row by row.
            context: what is known from clips recorded alike, (batch, emotions); see `Projector.forward`.
            kwargs: of the language model.

        Raises:
            ValueError: placeholders and audio tokens differ in number, or a mask is missing.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds are needed")
            pooled = None
            # Decoding steps hold no placeholder and audio stays in their arguments when frames are cached.
            prefill = past_key_values is None or past_key_values.get_seq_length() == 0
            if prefill and audio_frames is not None and audio_frames_mask is not None:
                pooled = PooledFrames(audio_frames, audio_frames_mask)
            elif prefill and input_features is not None and input_features_mask is not None:
                pooled = self.encode_audio(input_features, input_features_mask)
            inputs_embeds = self._embed(input_ids, pooled, context, prefill, position_ids)
        if position_ids is None and attention_mask is not None and past_key_values is None:
            # Left padding must not move positions: a batch then equals its single rows.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _embed(
        self,
        input_ids: Tensor,
        pooled: PooledFrames | None,
        context: Tensor | None,
        prefill: bool,
        position_ids: Tensor | None,
    ) -> Tensor:
        """Embeddings of the text, with the audio tokens in the places of the placeholders."""
        # The speaker's placeholder, where there is one, is the id above that of the audio.
        is_audio = input_ids >= self.config.audio_token_id
        inputs_embeds: Tensor = self.get_input_embeddings()(input_ids)
        if pooled is None:
            if prefill and bool(is_audio.any()):
                raise ValueError("the text holds audio placeholders but no audio was given, or no mask of it")
            return inputs_embeds
        tokens, mask = self.get_audio_features(pooled, context)
        wanted, given = is_audio.sum(1), mask.sum(1)
        if position_ids is not None and len(given) > len(wanted):
            # Several texts share a row, a clip each; their positions begin at 0.
            texts = (position_ids == 0).flatten().cumsum(0) - 1
            wanted = torch.bincount(texts[is_audio.flatten()], minlength=len(given))
        if not torch.equal(wanted, given):
            raise ValueError(
                f"placeholders {wanted.tolist()} and audio tokens {given.tolist()} differ in number; "
                "build inputs with AlignCapProcessor and never truncate them"
            )
        return inputs_embeds.masked_scatter(is_audio[..., None], tokens[mask].to(inputs_embeds.dtype))


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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_frames: Tensor | None = None,
        audio_frames_mask: Tensor | None = None,
        context: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """`AlignCapModel.forward` with logits and, where there are labels, the loss.

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
            context=context,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
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

    def leave_out_encoder(self) -> None:
        """Free the encoder's weights, where all features are cached: the model then reads `audio_frames`."""
        self.model.audio_tower = None
        for part in (self, self.model):
            _name_layers(part)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, and a model card beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            try:
                write_model_card(str(save_directory), self.name_or_path or "")
            except UserError as error:  # a damaged record must not stop a run at its end
                _log.warning("no model card: %s", error)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Our card in place of the automatic one, which `push_to_hub` writes just before it uploads."""
        write_model_card(working_dir, self.name_or_path or "", name=repo_id.rpartition("/")[2])
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


AutoModel.register(AlignCapConfig, AlignCapModel)
AutoModelForCausalLM.register(AlignCapConfig, AlignCapForConditionalGeneration)
AutoModelForMultimodalLM.register(AlignCapConfig, AlignCapForConditionalGeneration)
