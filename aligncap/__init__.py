"""AlignCap: speech emotion captioning, from a corpus folder to a scored report.

    from aligncap import Captioner

    captioner = Captioner.from_pretrained("runs/quickstart/model")
    captioner("clip.wav")

Once it is imported, transformers' `AutoModelForCausalLM` and `AutoProcessor` load AlignCap's folders. The
import itself is quick: a name of `__all__` is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import aligncap.models  # noqa: F401  (registers with transformers' Auto classes)

if TYPE_CHECKING:
    from aligncap.inference.captioner import Captioner
    from aligncap.models.configuration_aligncap import AlignCapConfig
    from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration, AlignCapModel
    from aligncap.models.processing_aligncap import AlignCapProcessor
    from aligncap.training.data import SpeechDataset
    from aligncap.training.distill import DistillConfig, DistillTrainer
    from aligncap.training.dpo import SpeechDPOConfig, SpeechDPOTrainer
    from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer
    from aligncap.training.teacher import TeacherConfig, TeacherTrainer

__version__ = "0.2.0"
__all__ = [
    "AlignCapConfig",
    "AlignCapForConditionalGeneration",
    "AlignCapModel",
    "AlignCapProcessor",
    "Captioner",
    "DistillConfig",
    "DistillTrainer",
    "SpeechDPOConfig",
    "SpeechDPOTrainer",
    "SpeechDataset",
    "SpeechSFTConfig",
    "SpeechSFTTrainer",
    "TeacherConfig",
    "TeacherTrainer",
]
_HOMES = {
    "AlignCapConfig": "models.configuration_aligncap",
    "AlignCapForConditionalGeneration": "models.modeling_aligncap",
    "AlignCapModel": "models.modeling_aligncap",
    "AlignCapProcessor": "models.processing_aligncap",
    "Captioner": "inference.captioner",
    "DistillConfig": "training.distill",
    "DistillTrainer": "training.distill",
    "SpeechDPOConfig": "training.dpo",
    "SpeechDPOTrainer": "training.dpo",
    "SpeechDataset": "training.data",
    "SpeechSFTConfig": "training.sft",
    "SpeechSFTTrainer": "training.sft",
    "TeacherConfig": "training.teacher",
    "TeacherTrainer": "training.teacher",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'aligncap' has no attribute {name!r}")
    return getattr(import_module(f"aligncap.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
