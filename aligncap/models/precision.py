"""Which device computes and in which precision, and what is kept in it: the one place that asks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel


def pick_device(device: str | None = "auto") -> str:
    """The device of this name; "auto" or None is the GPU where there is one.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    if device in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(str(device))
        kind = torch.get_device_module(found)
    except RuntimeError:
        raise UserError(f"device {device!r}: unknown; choose auto, cpu, cuda or cuda:NUMBER") from None
    count = kind.device_count() if kind.is_available() else 0
    if (found.index or 0) >= count:
        raise UserError(f"device {device!r}: this machine has {count} of this kind; choose auto or cpu")
    return str(device)


def has_bfloat16(device: str | None = None) -> bool:
    """Whether `device` (as `pick_device` has it) has bfloat16 instructions.

    Turing and Volta (T4, V100) emulate it in float32, slower than float32 itself, and torch counts that as
    support unless it is told not to.
    """
    if pick_device(device).startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def dtype_name(wanted: str, device: str = "auto") -> str:
    """ "float32" or "bfloat16" as wanted; "auto" is bfloat16 where the device has it.

    Raises:
        UserError: no such device.
    """
    best = str(best_dtype(device)).removeprefix("torch.")
    return best if wanted == "auto" else wanted


def best_dtype(device: str | None = None) -> torch.dtype:
    """bfloat16 where the device has it, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def training_dtype(wanted: str) -> tuple[torch.dtype, str]:
    """In which precision training computes, and why: the one place where that is decided.

    "auto" is bfloat16 where the device has it; on a GPU without it float16, whose losses are scaled so that
    small gradients do not vanish; on such a CPU float32.
    """
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted}, as asked"
    on_gpu = torch.cuda.is_available()
    device = "the GPU" if on_gpu else "this CPU"
    if has_bfloat16():
        return torch.bfloat16, f"bfloat16: {device} has it"
    if on_gpu:
        return torch.float16, f"float16 with scaled losses: {device} lacks bfloat16, or only emulates it"
    return torch.float32, f"float32: {device} lacks bfloat16"


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """torch's autocast to `dtype` on this kind of device; of float32 nothing."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)


def halve_frozen(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep frozen linear layers in `dtype`, where they are read under autocast to it.

    Autocast would make this copy of each weight in every pass and hold it until the backward pass; what is
    computed is the same to the bit. Embeddings stay as they are; a head tied to them gets a copy of its own,
    so a model that went through here is not one to save whole.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        linear = isinstance(module, (nn.Linear, Conv1D))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad or not parameter.is_floating_point():  # quantised
                continue
            # A copy in any case: weights files are mapped whole, and one view would keep all of it.
            data = parameter.data.to(dtype if linear else parameter.dtype, copy=True)
            if linear and id(parameter) in tables:
                module.register_parameter(name, nn.Parameter(data, requires_grad=False))
            else:
                parameter.data = data
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()


def halve_table(table: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep a frozen embedding in 16 bits where that loses nothing, and give float32 as before.

    The weights of most LLMs were stored in 16 bits, so one of the two such types holds each number exactly.
    Tables of a kind of their own, which scale what they give, stay as they are.
    """
    if type(table) is not nn.Embedding or table.weight.requires_grad or table.weight.dtype != torch.float32:
        return
    for half in (dtype, torch.float16, torch.bfloat16):
        data = table.weight.data.to(half)
        if torch.equal(data.float(), table.weight.data):
            table.weight.data = data
            table.register_forward_hook(lambda _, __, given: given.float())
            return


def suit_half(model: PeftModel, dtype: torch.dtype = torch.bfloat16) -> None:
    """Lay out a student or a teacher with adapters for training under autocast to `dtype` on its device.

    On a CPU torch's fused attention is slow backwards in bfloat16: plain matrix products take a tenth off a
    step of short rows (docs/log.md), and keep rows × heads × length² numbers a layer.
    """
    halve_frozen(model, dtype)
    base = model.get_base_model()
    llm = getattr(getattr(base, "model", base), "language_model", base)  # a teacher is one itself
    assert isinstance(llm, PreTrainedModel)
    halve_table(llm.get_input_embeddings(), dtype)
    if llm.device.type == "cpu" and llm.config._attn_implementation == "sdpa":
        llm.set_attn_implementation("eager")
