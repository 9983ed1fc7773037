"""Matrix multiplications of a training step, counted from the model's own matrices and its batch's shapes.

A multiplication and an addition are two. Softmaxes, norms and the recomputed divergences are not counted: on
matrices alone a step cannot be faster than these numbers over the machine's rate.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from aligncap.models.encoders import layer_index

BACKWARD = 1  # through frozen weights: the gradient of the input, none of the weights


def linear_weights(module: nn.Module, adapters: bool) -> int:
    """Numbers in the matrices of `module`'s linear layers: the adapters', or all others."""
    return sum(
        layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and ("lora_" in name) == adapters
    )


def llm_flops(llm: nn.Module, shape: tuple[int, int], backward: bool, adapters: bool) -> float:
    """Of one pass over (rows, length), padding included; attention over all pairs of positions."""
    rows, length = shape
    config: Any = llm.config
    frozen = 2 * linear_weights(llm, False) * rows * length
    trained = 2 * linear_weights(llm, True) * rows * length if adapters else 0
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4 * rows * length**2 * width * config.num_hidden_layers
    if not backward:
        return frozen + trained + attention
    return frozen * (1 + BACKWARD) + 3 * (trained + attention)


def encoder_flops(model: Any, rows: int, mel_frames: int) -> float:
    """Of one pass of Whisper, as far as `model` reads it, over `mel_frames` of 10 ms, padding included."""
    encoder = model.model.audio_tower
    layers = layer_index(model.config.encoder_layer, len(encoder.layers))
    layers = len(encoder.layers) if layers is None else layers
    frames = mel_frames // 2
    convolutions = (
        2 * rows * (encoder.conv1.weight.numel() * mel_frames + encoder.conv2.weight.numel() * frames)
    )
    linear = 2 * sum(linear_weights(layer, False) for layer in encoder.layers[:layers]) * rows * frames
    attention = 4 * rows * frames**2 * encoder.config.d_model * layers
    return convolutions + linear + attention


def step_flops(model: Any, batch: dict[str, Tensor], everywhere: bool) -> dict[str, float]:
    """Of each part of one distillation step.

    Args:
        model: an AlignCapForConditionalGeneration with adapters in it.
        batch: what the way reads: its audio (`padded_features`, `input_features` or `audio_frames`) and its
            teacher (`teacher_input_ids`, `teacher_hidden` or `teacher_top_k`, or none).
        everywhere: logits at every position, as the rivals have them, not at response positions alone.
    """
    llm, head = model.model.language_model, 2 * model.lm_head.weight.numel()
    response = int((batch["labels"] != -100).sum())
    rows, length = batch["input_ids"].shape
    config = model.config
    parts = {
        "LLM forward": llm_flops(llm, (rows, length), False, True),
        "head and loss": head * (rows * length if everywhere else response) * (1 + BACKWARD),
    }
    parts["LLM backward"] = llm_flops(llm, (rows, length), True, True) - parts["LLM forward"]
    audio = batch.get("padded_features", batch.get("input_features"))
    if audio is not None:
        parts["encoder"] = encoder_flops(model, rows, audio.shape[-1])
    tokens = int((batch["input_ids"] >= config.audio_token_id).sum())
    parts["projector"] = 6 * linear_weights(model.model.multi_modal_projector, False) * tokens
    if "teacher_input_ids" in batch:
        many, long = batch["teacher_input_ids"].shape
        parts["teacher's LLM"] = llm_flops(llm, (many, long), False, False)
        parts["teacher's head"] = head * (many * long if everywhere else response)
    elif "teacher_hidden" in batch:
        parts["teacher's head"] = head * response
    return parts
