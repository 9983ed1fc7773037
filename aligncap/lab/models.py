"""The lab's one way into speech LLMs: from clips and a question to states, logits and answers.

A `SpeechModel` listens to clips once (`listen`), lays a question around what it heard (`prefill`), and runs
its language model over that with whatever `edits` are made on the way (`run`, `decode`, `likelihood`). The
families are AlignCap's own models and Qwen2-Audio; another one is a subclass with `_hear` and `_prompt`.

    model = load_speech_model("runs/audio-llm/model")
    heard = model.listen([samples])                       # 16 kHz; tensors keep their gradients
    asked = model.prefill(heard, [Question("Which emotion does the speaker express?")])
    tokens = label_tokens(model.tokenizer, ["angry", "sad"])
    label_logits(model.run(asked).logits, tokens)         # (1, 2)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from aligncap.lab.edits import Edit, Trunk, edited, first_place, resumed
from aligncap.text.prompts import end_token_id
from aligncap.utils.errors import UserError

Clip = np.ndarray | Tensor  # mono samples at 16 kHz, (samples,)


@dataclass(frozen=True)
class Question:
    """What a model is asked about a clip.

    instruction: None: the model's own, which it was trained with; "": none at all.
    transcript: what it is told that the speaker says; None: nothing is told.
    begun: how the answer begins, for models that answer in sentences ("She sounds").
    """

    instruction: str | None = None
    transcript: str | None = None
    begun: str = ""


@dataclass(frozen=True, eq=False)
class Prefill:
    """Left-padded prompts as the language model reads them; the answer position is the last column.

    embeddings: (batch, length, width); mask: (batch, length), bool, false on padding.
    audio, instruction, transcript, text: (batch, length), bool: tokens made of sound (all that the projector
    gives), of the instruction, of the transcript, and all that is neither sound nor padding.
    offsets: of each row the tokens' places in `texts`, without padding.
    """

    embeddings: Tensor
    mask: Tensor
    audio: Tensor
    instruction: Tensor
    transcript: Tensor
    texts: list[str]
    offsets: list[list[tuple[int, int]]]

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def text(self) -> Tensor:
        return self.mask & ~self.audio

    @property
    def answer(self) -> Tensor:
        """The answer position as a mask, (batch, length)."""
        last = torch.zeros_like(self.mask)
        last[:, -1] = True
        return last

    def words(self, words: Sequence[str]) -> Tensor:
        """Tokens that hold any part of the first place where each row's word stands, (batch, length), bool.

        Case counts not. A row whose word is "" or stands nowhere has none.
        """
        spans = []
        for text, word in zip(self.texts, words, strict=True):
            start = text.lower().find(word.lower()) if word else -1
            spans.append((start, start + len(word)) if start >= 0 else None)
        return _span_mask(self.mask, self.offsets, spans)


@dataclass(frozen=True, eq=False)
class Run:
    """What a pass over a prefill gave.

    logits: (batch, vocabulary), float32, of the token after the answer position.
    states: (blocks + 1, batch, length, width): state 0 and what leaves each block.
    heads: (blocks, batch, heads, size): output of each head at the answer position, before it is mixed.
    attention: (blocks, batch, heads, length): from the answer position.
    """

    logits: Tensor
    states: Tensor | None = None
    heads: Tensor | None = None
    attention: Tensor | None = None


class SpeechModel(ABC):
    """A speech LLM with frozen weights, in evaluation mode.

    Args:
        model: has `lm_head`, `generate` that takes inputs_embeds, and `model.language_model`.
        audio_from: token ids from here on are placeholders of sound, never words; None: only `audio_ids`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        audio_ids: Collection[int],
        audio_from: int | None = None,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.audio_ids = frozenset(audio_ids)
        self.audio_from = audio_from
        self.trunk = Trunk.of(self.model.model.language_model)
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{type(tokenizer).__name__}: the lab needs a fast tokenizer (places of tokens)")

    # ---- what a family says

    @abstractmethod
    def _hear(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Of each clip its tokens of sound, (tokens, width), in the order of their placeholders."""

    @abstractmethod
    def _prompt(self, question: Question, count: int) -> tuple[str, str]:
        """(the prompt with `count` placeholders, the transcript as it stands there)."""

    @property
    @abstractmethod
    def max_seconds(self) -> float:
        """Longest clip that the encoder takes, s."""

    # ---- sizes

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def blocks(self) -> int:
        """Number L of transformer blocks of the language model."""
        return len(self.trunk.blocks)

    @property
    def heads(self) -> int:
        return self.trunk.heads

    @property
    def width(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)

    # ---- prompts

    def listen(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Of each clip its tokens of sound, (tokens, width), to be used in as many prompts as wanted.

        Arrays go the way of `caption`. Tensors go through `lab.waveform`, with gradients to the samples.

        Raises:
            UserError: a clip is empty or too long; tensors, and the encoder's features have no gradients.
        """
        if len({isinstance(clip, Tensor) for clip in clips}) > 1:
            raise ValueError("clips: arrays or tensors, not both")
        return self._hear(clips)

    def prefill(self, heard: Sequence[Tensor], questions: Sequence[Question]) -> Prefill:
        """Prompts of clips that were heard, a question each.

        Raises:
            UserError: the model's prompt has no place for an instruction, or it holds a control token.
        """
        rows, texts, offsets, spans = [], [], [], []
        for tokens, question in zip(heard, questions, strict=True):
            text, told = self._prompt(question, len(tokens))
            text += question.begun
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            rows.append(found["input_ids"])
            texts.append(text)
            offsets.append([(int(a), int(b)) for a, b in found["offset_mapping"]])
            spans.append((_span(text, (question.instruction or "").strip()), _span(text, told)))
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :], mask[i, length - len(row) :] = torch.tensor(row), True
        audio = torch.isin(ids, torch.tensor(sorted(self.audio_ids))) & mask
        if audio.sum(1).tolist() != [len(tokens) for tokens in heard]:
            raise ValueError("placeholders and tokens of sound differ in number")
        embeddings = self.model.get_input_embeddings()(ids.to(self.device))
        sound = torch.cat(list(heard)).to(embeddings)
        embeddings = embeddings.masked_scatter(audio[..., None].to(self.device), sound)
        instruction, transcript = (_span_mask(mask, offsets, [s[k] for s in spans]) for k in (0, 1))
        mask, audio, instruction, transcript = (
            m.to(self.device) for m in (mask, audio, instruction, transcript)
        )
        return Prefill(embeddings, mask, audio, instruction, transcript, texts, offsets)

    # ---- passes

    def run(
        self,
        prefill: Prefill,
        edits: Sequence[Edit] = (),
        *,
        states: bool = False,
        heads: bool = False,
        attention: bool = False,
        resume: tuple[int, Tensor] | None = None,
    ) -> Run:
        """One pass, differentiable in embeddings and edits; what is asked for by name is kept.

        Args:
            resume: (l, state l of all positions), of a pass over the same prefill that was not edited below:
                blocks 1 … l are not run again. Nothing is kept then, and edits are of later layers.
        """
        if resume is not None and (states or heads or attention or first_place(edits) <= resume[0]):
            raise ValueError("a resumed pass keeps nothing, and is edited above the layer that it begins at")
        kept: dict[str, list[Tensor]] = {"states": [], "heads": []}
        with ExitStack() as stack:
            stack.enter_context(edited(self.trunk, edits))
            if states:
                _keep_states(self.trunk, kept["states"], stack)
            if heads:
                _keep_heads(self.trunk, kept["heads"], stack)
            if attention:
                stack.enter_context(_eager(self.model.model.language_model))
            if resume is not None:
                stack.enter_context(resumed(self.trunk, *resume))
            out = self._pass(prefill.embeddings, prefill.mask, output_attentions=attention or None)
        rows = torch.stack([a[:, :, -1] for a in out.attentions]) if attention else None
        found = {name: torch.stack(parts) if parts else None for name, parts in kept.items()}
        return Run(self._logits(out.last_hidden_state[:, -1]), found["states"], found["heads"], rows)

    def readout(self, states: Tensor) -> Tensor:
        """The logit lens: logits (…, vocabulary), float32, of states (…, width) before the last norm."""
        return self._logits(self.trunk.norm(states))

    @torch.no_grad()
    def decode(self, prefill: Prefill, max_new_tokens: int = 16, edits: Sequence[Edit] = ()) -> list[str]:
        """Greedy answers, in one line each, without what was `begun`."""
        ends = {end_token_id(self.tokenizer), self.tokenizer.eos_token_id}
        pad = self.tokenizer.pad_token_id
        with edited(self.trunk, edits):
            ids = self.model.generate(
                inputs_embeds=prefill.embeddings,
                attention_mask=prefill.mask.long(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=sorted(ends - {None}),
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            )
        return [" ".join(t.split()) for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def likelihood(
        self, prefill: Prefill, answers: Sequence[Sequence[int]], edits: Sequence[Edit] = ()
    ) -> Tensor:
        """Log-probability of one answer (token ids) a row, (batch,), float32; differentiable.

        Raises:
            ValueError: an answer is empty.
        """
        said, known = _right_padded(answers)
        embeddings = self.model.get_input_embeddings()(said.to(self.device))
        joined = torch.cat([prefill.embeddings, embeddings.to(prefill.embeddings)], 1)
        with edited(self.trunk, edits):
            out = self._pass(joined, torch.cat([prefill.mask, known.to(self.device)], 1))
        start = prefill.embeddings.shape[1] - 1
        logits = self._logits(out.last_hidden_state[:, start:-1])
        found = logits.log_softmax(-1).gather(-1, said.to(self.device)[..., None])[..., 0]
        return (found * known.to(found)).sum(1)

    @torch.no_grad()
    def likelihoods(
        self,
        prefill: Prefill,
        answers: Sequence[Sequence[int]],
        edits: Sequence[Edit] = (),
        at_a_time: int = 64,
    ) -> Tensor:
        """Log-probability of every answer after every prompt, (batch, answers), float32.

        The prompt is read once. Answers of one token cost nothing more.

        Args:
            at_a_time: rows of the passes over answers' later tokens.

        Raises:
            ValueError: an answer is empty.
        """
        said, known = _right_padded(answers)
        batch, device = len(prefill), self.device
        with edited(self.trunk, edits):
            cache = DynamicCache()
            out = self._pass(prefill.embeddings, prefill.mask, cache)
            first = self._logits(out.last_hidden_state[:, -1]).log_softmax(-1)
            scores = first[:, said[:, 0].to(device)]
            longer = (known.sum(1) > 1).nonzero()[:, 0].tolist()
            step = max(1, at_a_time // batch)
            for begin in range(0, len(longer), step):
                chosen = longer[begin : begin + step]
                rows, own = said[chosen].to(device), known[chosen].to(device)
                scores[:, chosen] += self._later(prefill.mask, cache, rows, own)
        return scores

    def _later(self, mask: Tensor, cache: DynamicCache, said: Tensor, known: Tensor) -> Tensor:
        """Log-probability of the tokens after the first of answers (n, tokens), (batch, n)."""
        batch, number = len(mask), len(said)
        past = deepcopy(cache)
        past.batch_repeat_interleave(number)
        embeddings = self.model.get_input_embeddings()(said[:, :-1].repeat(batch, 1))
        seen = torch.cat([mask.repeat_interleave(number, 0), known[:, :-1].repeat(batch, 1)], 1)
        out = self._pass(embeddings, seen, past)
        logits = self._logits(out.last_hidden_state).log_softmax(-1)
        found = logits.gather(-1, said[:, 1:].repeat(batch, 1)[..., None])[..., 0]
        return (found * known[:, 1:].repeat(batch, 1)).sum(1).view(batch, number)

    def _pass(
        self, embeddings: Tensor, mask: Tensor, cache: DynamicCache | None = None, **more: object
    ) -> Any:
        places = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=places,
            past_key_values=cache,
            use_cache=cache is not None,
            **{name: value for name, value in more.items() if value is not None},
        )

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(states).float()
        if self.audio_from is not None:  # rows that are no words
            logits = logits.clone()
            logits[..., self.audio_from :] = torch.finfo(logits.dtype).min
        return logits


# ---- helpers


def _span(text: str, part: str) -> tuple[int, int] | None:
    start = text.find(part) if part else -1
    return (start, start + len(part)) if start >= 0 else None


def _span_mask(
    mask: Tensor, offsets: Sequence[list[tuple[int, int]]], spans: Sequence[tuple[int, int] | None]
) -> Tensor:
    """Tokens that hold any character of each row's span, (batch, length), bool."""
    found = torch.zeros_like(mask)
    for row, (places, span) in enumerate(zip(offsets, spans, strict=True)):
        if span is not None:
            own = [start < span[1] and end > span[0] for start, end in places]
            found[row, mask.shape[1] - len(own) :] = torch.tensor(own, device=mask.device)
    return found


def _right_padded(answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    if not all(answers):
        raise ValueError("answers: each needs a token")
    rows = [torch.tensor(list(answer)) for answer in answers]
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(r, dtype=torch.bool) for r in rows], True)


def _keep_states(trunk: Trunk, into: list[Tensor], stack: ExitStack) -> None:
    """Let every state be put into `into`, after the edits of its place."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: nn.Module, _args: object, out: Any) -> None:
        into.append(out[0] if isinstance(out, tuple) else out)

    handles = [trunk.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    for handle in [*handles, *(block.register_forward_hook(after) for block in trunk.blocks)]:
        stack.callback(handle.remove)


def _keep_heads(trunk: Trunk, into: list[Tensor], stack: ExitStack) -> None:
    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        into.append(args[0][:, -1].unflatten(-1, (trunk.heads, -1)))

    for block in range(1, len(trunk.blocks) + 1):
        stack.callback(trunk.output(block).register_forward_pre_hook(keep).remove)


@contextmanager
def _eager(language_model: PreTrainedModel) -> Iterator[None]:
    """Attention that gives its weights, within the block."""
    config: Any = language_model.config
    usual = config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(usual)
