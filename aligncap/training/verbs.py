"""The training verbs and their options."""

from __future__ import annotations

from aligncap.training.arguments import DistillArguments, RunArguments, SpeechArguments, TeacherArguments
from aligncap.training.prefer_arguments import PreferArguments

ARGUMENTS: dict[str, type[RunArguments]] = {
    "teacher": TeacherArguments,
    "sft": SpeechArguments,
    "distill": DistillArguments,
    "prefer": PreferArguments,
}
