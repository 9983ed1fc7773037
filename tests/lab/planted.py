"""A speech LLM built by hand, in which it is known who wins, in which block, and through which head.

The residual stream has dimensions for the emotion of the voice (written at tokens of sound), for the emotion
that the text tells (at its word), and for the answer. One block's head 0 looks at tokens of sound and writes
their emotion into the answer, with the gain of the audio; one block's head 1 does the same with told words.
All other blocks do nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from tiny import voice
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from aligncap.lab.label_words import label_tokens
from aligncap.lab.models import SpeechModel
from aligncap.lab.stimuli import Stimulus
from aligncap.lab.study import Study
from aligncap.utils.io import load_data

EMOTIONS = ["neutral", "happy", "sad", "angry", "fearful"]
PITCHES = dict(zip(EMOTIONS, (100, 170, 250, 340, 440)))  # Hz, of the clips of each emotion
N = len(EMOTIONS)
AUDIO_FLAG, WORD_FLAG, ONE = 3 * N, 3 * N + 1, 3 * N + 2
WIDTH, HEADS, SIZE = 20, 2, 10
SHARP = 40.0  # score of what a head looks at


class Attention(nn.Module):
    """Heads that look where a flag is and write an emotion into the answer; `gains` of sound and word."""

    def __init__(self, gains: tuple[float, float]) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=HEADS)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(WIDTH, WIDTH, False) for _ in range(4)
        )
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            layer.weight.data.zero_()
        for head, (flag, gain) in enumerate(zip((AUDIO_FLAG, WORD_FLAG), gains)):
            start = head * SIZE
            self.q_proj.weight.data[start, ONE] = SHARP
            self.k_proj.weight.data[start, flag] = SIZE**0.5
            for e in range(N):
                self.v_proj.weight.data[start + e, head * N + e] = 1.0
                self.o_proj.weight.data[2 * N + e, start + e] = gain

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = (
            layer(hidden_states).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (q @ k.transpose(2, 3) / SIZE**0.5 + attention_mask).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Block(nn.Module):
    """h → h + attention(h), in bases of its own: `into` undoes that of its input, `out` is what it leaves."""

    def __init__(self, gains: tuple[float, float], into: torch.Tensor, out: torch.Tensor) -> None:
        super().__init__()
        self.self_attn = Attention(gains)
        self.register_buffer("into", into)
        self.register_buffer("out", out)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        plain = hidden_states @ self.into.T
        added, self.weights = self.self_attn(hidden_states=plain, attention_mask=attention_mask)
        return (plain + added) @ self.out


class Language(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=HEADS, _attn_implementation="eager")
        self.layers, self.norm = nn.ModuleList(blocks), nn.Identity()

    def set_attn_implementation(self, name: str) -> None:
        pass

    def forward(self, inputs_embeds, attention_mask, output_attentions=False, **kwargs):
        length = inputs_embeds.shape[1]
        seen = torch.ones(length, length).tril().bool() & attention_mask[:, None].bool()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
        states = inputs_embeds
        for block in self.layers:
            states = block(states, attention_mask=mask)
        return SimpleNamespace(
            last_hidden_state=states,
            attentions=[b.weights for b in self.layers] if output_attentions else None,
        )


class Whole(nn.Module):
    def __init__(self, language: Language, words: dict[str, int], vocabulary: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.language_model = language
        self.embeddings = nn.Embedding(vocabulary, WIDTH)
        self.lm_head = nn.Linear(WIDTH, vocabulary, False)
        rows, head = self.embeddings.weight.data.zero_(), self.lm_head.weight.data.zero_()
        rows[:, ONE], head[:, ONE] = 1.0, -12.0
        for e, emotion in enumerate(EMOTIONS):
            rows[words[emotion], [N + e, WORD_FLAG]] = 1.0
            head[words[emotion], ONE], head[words[emotion], 2 * N + e] = 0.0, 1.0
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings


class Planted(SpeechModel):
    """
    Args:
        audio, text: (block, gain) of the heads that read sound and told words; gain 0: nothing is read.
        rotated: every state between the first and the last is in a random basis of its own.
    """

    max_seconds = 20.0

    def __init__(
        self, audio=(2, 4.0), text=(4, 8.0), blocks: int = 6, rotated: bool = False, seed: int = 0
    ) -> None:
        texts = [str(load_data("conflict.yaml")["en"]), " ".join(EMOTIONS), "answer : says"]
        words = sorted(set(re.findall(r"\w+|[^\w\s]+", " ".join(texts))))
        known = {w: i for i, w in enumerate(["<unk>", "<a>", *words])}
        raw = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<a>"]})
        torch.manual_seed(seed)
        bases = [torch.eye(WIDTH)] * (blocks + 1)
        if rotated:
            bases[1:-1] = [torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] for _ in range(blocks - 1)]
        made = []
        for b in range(1, blocks + 1):
            gains = (audio[1] if b == audio[0] else 0.0, text[1] if b == text[0] else 0.0)
            made.append(Block(gains, bases[b - 1], bases[b]))
        super().__init__(Whole(Language(made), known, len(known)), tokenizer, [known["<a>"]])

    def _hear(self, clips):
        return [self._tokens(np.asarray(clip)) for clip in clips]

    @staticmethod
    def _tokens(clip: np.ndarray) -> torch.Tensor:
        spectrum = np.abs(np.fft.rfft(clip))
        pitch = np.argmax(spectrum) * 16_000 / len(clip)
        emotion = int(np.argmin([abs(pitch - p) for p in PITCHES.values()]))
        tokens = torch.zeros(2 + len(clip) // 16_000, WIDTH)
        tokens[:, [emotion, AUDIO_FLAG, ONE]] = 1.0
        return tokens

    def _prompt(self, question, count):
        told = f'"{question.transcript}"' if question.transcript else ""
        said = f"says {told} " if told else ""
        return f"{question.instruction or ''} {said}{'<a>' * count} answer :", told


def planted_study(model: Planted, **options) -> Study:
    """What is heard depends on no planted model, so all share it."""
    return Study(model, EMOTIONS, label_tokens(model.tokenizer, EMOTIONS, ["en"]), heard=HEARD, **options)


HEARD: dict[str, torch.Tensor] = {}


def planted_clips(folder: Path, speakers: int = 12) -> list[Stimulus]:
    """One clip of every emotion and speaker; lengths differ."""
    found = []
    for s in range(speakers):
        for e, emotion in enumerate(EMOTIONS):
            path = folder / f"{emotion}_en_v{s}.wav"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, voice(1.0 + 0.3 * ((s + e) % 4), PITCHES[emotion], seed=s), 16_000)
            strength = "strong" if s % 2 and e else "normal"
            found.append(Stimulus(f"{emotion}-{s}", path, "planted", f"v{s}", emotion, strength, "en"))
    return found
