"""Alarms and early stop of `train prefer`: it can win its margin and lose its captions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from aligncap.training.config import SpeechDPOConfig


def out_of_patience(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` dev scores of a log did not better the one before them."""
    scores = [row["eval_rubric"] for row in history if "eval_rubric" in row]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


class Patience(TrainerCallback):
    """Stops after `patience` evaluations in a row that did not better the dev score, the start's included.

    It counts in the log, so a resumed run stops where an unbroken one does.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if out_of_patience(state.log_history, self.patience):
            control.should_training_stop = True


class Watch(TrainerCallback):
    """Says when chosen captions lose probability, captions grow longer, or outputs collapse into one.

    An alarm is a line on standard error and a field `alarm/...` of the log; it stops nothing.
    """

    def __init__(self, args: SpeechDPOConfig) -> None:
        self.limits = args

    def alarms(self, logs: dict[str, Any], history: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
        """Alarm name to message, for one row of the log; `history` holds the rows before it.

        `rewards/chosen` is β times the mean log-ratio of chosen captions to the reference, in nats.
        """
        found = {}
        limits = self.limits
        if "rewards/chosen" in logs:
            drop = -logs["rewards/chosen"] / limits.beta
            if drop > limits.alarm_chosen_drop:
                found["chosen_falls"] = (
                    f"chosen captions lost {drop:.1f} nats against the reference; "
                    "mix in sft (--loss_type sigmoid sft --loss_weights 1 0.5) or lower learning_rate"
                )
        if "eval_length" in logs:
            first = next((row["eval_length"] for row in history if "eval_length" in row), logs["eval_length"])
            growth = logs["eval_length"] / first - 1 if first else 0.0
            if growth > limits.alarm_length_growth:
                found["length_grows"] = (
                    f"dev captions grew by {growth:.0%}; balance the lengths of the pairs, or set ld_alpha"
                )
        if logs.get("eval_top_share", 0.0) > limits.alarm_top_share:
            found["outputs_collapse"] = (
                f"{logs['eval_top_share']:.0%} of the dev captions are one and the same; stop earlier"
            )
        return found

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None:
            return
        for name, message in self.alarms(logs, state.log_history).items():
            logs[f"alarm/{name}"] = 1.0
            if state.is_world_process_zero:
                print(f"alarm at step {state.global_step}: {message}", file=sys.stderr)
