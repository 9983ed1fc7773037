"""The dev score of `train dpo`, its early stop, and alarms: DPO can win its margin and lose its captions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aligncap.data.split import choose_evenly
from aligncap.inference.captioner import Captioner
from aligncap.text.emotions import emotion_of
from aligncap.text.lexicon import caption_length
from aligncap.text.rubric import evidence, score
from aligncap.training.clips import Clips
from aligncap.training.collators import audio_batch, pad_prompts
from aligncap.training.data import ClipInputs
from aligncap.training.resume import out_of_patience
from aligncap.utils.statistics import recall_sums, uar

_log = logging.getLogger(__name__)


class DevScore:
    """Captions of a fixed choice of dev clips, scored: call it with the model under training.

    Args:
        clips: all dev clips, of which `number` are chosen: a speaker's norm is that of all of them.
        limit: longest caption, in tokens.
    """

    def __init__(self, clips: Clips, inputs: ClipInputs, *, number: int, batch: int, limit: int) -> None:
        self.places = choose_evenly(clips.utterances, number, seed=0)
        known = evidence(clips.utterances)
        self.evidence = [known[i] for i in self.places]
        self.clips, self.inputs, self.batch, self.limit = clips, inputs, batch, limit

    @torch.no_grad()
    def captions(self, model: Any, indices: list[int], sharded: bool = False) -> dict[int, str]:
        """Greedy captions of some of the chosen clips."""
        found: dict[int, str] = {}
        processor = self.inputs.processor
        rows = {i: self.inputs(self.clips, self.places[i]) for i in indices}
        ordered = sorted(indices, key=lambda i: -len(rows[i]["prompt_ids"]))
        for start in range(0, len(ordered), self.batch):
            part = ordered[start : start + self.batch]
            own = [rows[i] for i in part]
            inputs = pad_prompts([row["prompt_ids"] for row in own], processor.tokenizer.pad_token_id)
            inputs |= audio_batch(own, processor)
            output = model.generate(
                **{k: v.to(model.device) for k, v in inputs.items()},
                max_new_tokens=self.limit,
                do_sample=False,
                synced_gpus=sharded or None,  # weights in shards are gathered by all processes, or by none
            )
            texts = Captioner(model, processor).texts(output[:, inputs["input_ids"].shape[1] :])
            found.update(zip(part, texts, strict=True))
        return found

    def __call__(
        self, model: Any, process: int = 0, processes: int = 1, sharded: bool = False
    ) -> dict[str, float]:
        """Scores of the dev clips, each process captioning its share: of as many clips, since with weights in
        shards (`sharded`) all processes must take the same steps.

        Returns:
            rubric (mean overall, 0 to 10, fluency left out), uar of emotions, length in words (of
            Chinese, characters), top_share (of the most frequent caption).
        """
        count = len(self.places)
        every = -(-count // processes) * processes
        share = [i % count for i in range(process, every, processes)]
        own = self.captions(model, share, sharded)
        parts = gather_object([own]) if processes > 1 else [own]
        captions = {i: text for part in parts for i, text in part.items()}
        texts = [captions[i] for i in range(count)]
        emotions = [self.clips.utterances[place].emotion for place in self.places]
        named = [
            (emotion, emotion_of(text)) for emotion, text in zip(emotions, texts, strict=True) if emotion
        ]
        scores = {
            "rubric": fmean(score(t, e).overall for t, e in zip(texts, self.evidence, strict=True)),
            "length": fmean(map(caption_length, texts)),
            "top_share": Counter(texts).most_common(1)[0][1] / len(texts),
        }
        if named:
            truth, said = zip(*named, strict=True)
            scores["uar"] = float(uar(recall_sums(truth, said, sorted(set(truth))).sum(axis=0)))
        return scores


class Watch(TrainerCallback):
    """Says when chosen captions lose probability, captions grow longer, or outputs collapse into one.

    An alarm is a warning and a field `alarm/...` of the log; it stops nothing. `patience` does: so many
    evaluations in a row without a better dev score, the start's included (0: never). They are counted in the
    log, so a resumed run stops where an unbroken one does.

    Args:
        beta: of DPO; chosen_drop, length_growth, top_share: what may be lost, grow or be alike without alarm.
    """

    def __init__(
        self, beta: float, chosen_drop: float, length_growth: float, top_share: float, patience: int = 0
    ) -> None:
        self.beta, self.chosen_drop, self.patience = beta, chosen_drop, patience
        self.length_growth, self.top_share = length_growth, top_share

    def alarms(self, logs: dict[str, float], history: Sequence[dict[str, float]] = ()) -> dict[str, str]:
        """Alarm name to message, for one row of the log; `history` holds the rows before it.

        `rewards/chosen` is β times the mean log-ratio of chosen captions to the reference, in nats.
        """
        found = {}
        drop = -logs.get("rewards/chosen", 0.0) / self.beta
        if "rewards/chosen" in logs and drop > self.chosen_drop:
            found["chosen_falls"] = (
                f"chosen captions lost {drop:.1f} nats against the reference; "
                "mix in sft (--loss_type sigmoid sft --loss_weights 1 0.5) or lower learning_rate"
            )
        if "eval_length" in logs:
            first = next((row["eval_length"] for row in history if "eval_length" in row), logs["eval_length"])
            growth = logs["eval_length"] / first - 1 if first else 0.0
            if growth > self.length_growth:
                found["length_grows"] = (
                    f"dev captions grew by {growth:.0%}; balance the lengths of the pairs, or set ld_alpha"
                )
        if logs.get("eval_top_share", 0.0) > self.top_share:
            found["outputs_collapse"] = (
                f"{logs['eval_top_share']:.0%} of the dev captions are one and the same; stop earlier"
            )
        return found

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.patience and out_of_patience(state.log_history, self.patience):
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs is None:
            return
        for name, message in self.alarms(logs, state.log_history).items():
            logs[f"alarm/{name}"] = 1.0
            if state.is_world_process_zero:
                _log.warning("alarm at step %d: %s", state.global_step, message)
