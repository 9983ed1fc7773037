"""What the parts of the conflict study share: a model, its label words, and clips that were heard once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.inference.captioner import batches_by_size
from aligncap.lab.edits import Edit, first_place
from aligncap.lab.label_words import label_logits
from aligncap.lab.models import Prefill, SpeechModel
from aligncap.lab.stimuli import Stimulus, Trial
from aligncap.utils.progress import track


@dataclass
class Study:
    """
    emotions: the labels that compete, in this order in every score.
    tokens: by label, those that answer with it (`label_words.label_tokens`).
    begun: how answers begin, for models that answer in sentences.
    heard: tokens of sound by clip id, filled by `listen`.
    """

    model: SpeechModel
    emotions: list[str]
    tokens: dict[str, list[int]]
    begun: str = ""
    batch_size: int = 16
    heard: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def listen(self, clips: Iterable[Stimulus]) -> None:
        """Hear the clips that were not heard yet.

        Raises:
            UserError: a clip cannot be used.
        """
        todo = list({s.id: s for s in clips if s.id not in self.heard}.values())
        for batch in track(batches_by_size([s.path for s in todo], self.batch_size), None, "listening"):
            samples = [load_audio(todo[i].path, max_seconds=self.model.max_seconds) for i in batch]
            tokens = self.model.listen(samples)
            self.heard.update((todo[i].id, t) for i, t in zip(batch, tokens, strict=True))

    def prefill(self, trials: Sequence[Trial], heard: Sequence[Tensor] | None = None) -> Prefill:
        """Prompts of trials, with other sound in place of their clips' where it is given."""
        tokens = [self.heard[t.clip.id] for t in trials] if heard is None else heard
        return self.model.prefill(tokens, [t.question(self.begun) for t in trials])

    def scores(self, logits: Tensor) -> Tensor:
        """Log-probability of the labels at the answer position, (…, emotions)."""
        return label_logits(logits.log_softmax(-1), self.tokens)

    @torch.no_grad()
    def answer(self, prefill: Prefill, edits: Sequence[Edit] = (), states: Tensor | None = None) -> Tensor:
        """`scores` after a pass, (batch, emotions), on the CPU.

        Args:
            states: of an unedited pass over the prefill, (layers + 1, batch, length, width): the blocks below
                the first edit are then not run again.
        """
        first = first_place(edits) - 1
        resume = None if states is None or first < 1 or not edits else (int(first), states[int(first)])
        return self.scores(self.model.run(prefill, edits, resume=resume).logits).cpu()

    def batches(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Trials in batches of like length, so that little is padding."""

        def size(trial: Trial) -> int:
            asked = trial.question()
            return 4 * len(self.heard[trial.clip.id]) + len(f"{asked.instruction}{asked.transcript or ''}")

        order = sorted(trials, key=lambda t: (-size(t), t.key))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def index(self, emotion: str) -> int:
        return self.emotions.index(emotion)
