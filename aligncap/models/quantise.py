"""Frozen language models held in 8 or 4 bits while adapters are trained (QLoRA, Dettmers et al. 2023).

Only memory is quantised: what is saved, and what `merge` folds adapters into, are the plain weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aligncap.utils.errors import UserError

Weights = Literal["full", "int8", "nf4"]


def quantise_errors(weights: Weights) -> list[str]:
    """Why weights cannot be held so on this machine, a line each."""
    if weights == "full" or find_spec("bitsandbytes"):
        return []
    return [f"llm_weights={weights}: needs bitsandbytes; pip install 'aligncap[bits]', or choose full"]


def quantise(model: PreTrainedModel, llm: PreTrainedModel, weights: Weights) -> None:
    """Hold the linear layers of `llm`, a part of `model` or itself, in 8 bits (LLM.int8) or 4 (NF4).

    Embeddings and the head stay as they are. Adapters of peft then know how to stand on such layers.

    Raises:
        UserError: bitsandbytes is not installed, or the language model has no plain linear layers (GPT-2).
    """
    if weights == "full":
        return
    if errors := quantise_errors(weights):
        raise UserError(errors[0])
    if any(isinstance(module, Conv1D) for module in llm.modules()):
        raise UserError(
            f"llm_weights={weights}: {llm.config.model_type} has no plain linear layers; choose full"
        )
    import bitsandbytes as bnb

    head = llm.get_output_embeddings()
    for name, module in list(llm.named_modules()):
        if not isinstance(module, nn.Linear) or module is head:
            continue
        shape = module.in_features, module.out_features, module.bias is not None
        data = module.weight.data
        new: nn.Module
        held: nn.Parameter
        with torch.device("meta"):
            if weights == "nf4":
                new = bnb.nn.Linear4bit(*shape, compute_dtype=torch.bfloat16, quant_type="nf4")
                held = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
                held = bnb.nn.Int8Params(data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.weight, new.bias = held, module.bias
        llm.set_submodule(name, new.to(data.device))
    # what peft goes by when it chooses its layers
    setattr(model, "is_loaded_in_4bit" if weights == "nf4" else "is_loaded_in_8bit", True)
