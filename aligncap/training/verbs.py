"""The training verbs and their options."""

from __future__ import annotations

from aligncap.training.arguments import (
    AlignArguments,
    DistillArguments,
    RunArguments,
    SpeechArguments,
    TeacherArguments,
)
from aligncap.training.prefer_arguments import PreferArguments

ARGUMENTS: dict[str, type[RunArguments]] = {
    "teacher": TeacherArguments,
    "align": AlignArguments,
    "sft": SpeechArguments,
    "distill": DistillArguments,
    "prefer": PreferArguments,
}
