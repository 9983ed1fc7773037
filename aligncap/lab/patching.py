"""Who causes it: states of one prompt put into the pass of another, in windows of layers.

Of a prompt that tells T about a voice of A, Δ = log p(T) − log p(A) at the answer position.

- text: states of the tokens that tell T become those of the same prompt telling A; the text's cause is how
  far Δ falls, of how far it falls where the prompt itself tells A.
- audio: states of the tokens of sound become those of another clip, whose voice is T; the audio's cause is
  how far Δ rises, of how far it rises where that clip itself is heard.
- back: states of the tokens of sound become those of a later layer of the same pass.
- cuts: attention from the answer position to sound, or to the told text, is knocked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.lab.behaviour import said
from aligncap.lab.edits import Attend, Edit, Replace
from aligncap.lab.models import Prefill
from aligncap.lab.stimuli import Stimulus, Trial
from aligncap.lab.study import Study
from aligncap.utils.distributed import ALONE, Store
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, clusters_of, intervals, mean, ratio

PATHS = ("text", "audio", "cut text", "cut audio")


@dataclass(frozen=True)
class Windows:
    """Windows of `size` layers that begin every `step` layers; states 0 … L, or blocks 1 … L."""

    blocks: int
    size: int
    step: int

    @property
    def states(self) -> list[tuple[int, int]]:
        """First and last state of each window; the last window ends at the last state but one, since what the
        answer position has read by then is all that counts."""
        return self._spans(0, self.blocks - 1)

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """First and last block of each window."""
        return self._spans(1, self.blocks)

    def _spans(self, first: int, last: int) -> list[tuple[int, int]]:
        size = min(self.size, last - first + 1)
        starts = [*range(first, last - size + 2, self.step)]
        if starts[-1] != last - size + 1:
            starts.append(last - size + 1)
        return [(start, start + size - 1) for start in starts]

    @property
    def back(self) -> list[tuple[int, int]]:
        """(later, earlier) states of back-patching: all pairs of some six layers of even distance."""
        layers = sorted({round(x) for x in np.linspace(0, self.blocks - 1, min(6, self.blocks))})
        return [(later, earlier) for later in layers for earlier in layers if earlier < later]


def donors(trials: Sequence[Trial], clips: Sequence[Stimulus]) -> dict[str, Stimulus]:
    """By trial key a clip whose voice is T, by the same speaker where there is one; a trial may have none."""
    found = {}
    for number, t in enumerate(trials):
        able = [s for s in clips if s.emotion == t.told]
        own = [s for s in able if (s.corpus, s.speaker) == (t.clip.corpus, t.clip.speaker)]
        alike = [s for s in own if s.intensity == t.clip.intensity] or own or able
        if alike:
            found[t.key] = alike[number % len(alike)]
    return found


def patch_trials(
    study: Study, trials: Sequence[Trial], clips: Sequence[Stimulus], windows: Windows, rows: Store
) -> None:
    """Put of each trial the scores of every patched pass into `rows`.

    A row is {"base", "text donor", "audio donor", "no text", "no audio": scores; "text", "audio", "cut text",
    "cut audio", "back": [scores by window]}; the cuts without a window are of all blocks at once.
    """
    study.listen(t.clip for t in trials)
    donor = donors(trials, clips)
    by_key = {t.key: t for t in trials if t.key in donor}

    @torch.no_grad()
    def compute(keys: Sequence[str]) -> Row:
        batch = [by_key[k] for k in keys]
        found = patch_batch(study, batch, [donor[k] for k in keys], windows)
        return {
            k: {
                name: [s[i] for s in part] if isinstance(part[0][0], list) else part[i]
                for name, part in found.items()
            }
            for i, k in enumerate(keys)
        }

    size = max(1, study.batch_size // 2)
    batches = [[t.key for t in batch] for batch in study.batches(list(by_key.values()))]
    halves = [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]
    ALONE.share_out(rows, halves, compute, "patching")


def patch_batch(
    study: Study, batch: Sequence[Trial], donor: Sequence[Stimulus], windows: Windows
) -> dict[str, list]:
    """What `patch_trials` keeps, of a batch: scores are lists (trials, emotions), by window where it says."""
    model, base = study.model, study.prefill(batch)
    run = model.run(base, states=True)
    telling_a = study.prefill([replace(t, told=t.clip.emotion) for t in batch])
    text = model.run(telling_a, states=True)
    other = study.prefill(
        batch, model.listen([_as_long(study, t.clip, d) for t, d in zip(batch, donor, strict=True)])
    )
    audio = model.run(other, states=True)
    assert run.states is not None and text.states is not None and audio.states is not None
    told = told_text(base, batch)
    moved = aligned(text.states, telling_a, base, told_text(telling_a, batch), told)

    def answers(edits: Sequence[Edit]) -> list:
        return study.answer(base, edits, run.states).tolist()

    def patched(positions: Tensor, states: Tensor, span: tuple[int, int]) -> list:
        return answers([Replace(la, positions, states[la]) for la in range(span[0], span[1] + 1)])

    every = range(1, model.blocks + 1)
    cut = {"text": told, "audio": base.audio}
    return {
        "base": study.scores(run.logits).tolist(),
        "text donor": study.scores(text.logits).tolist(),
        "audio donor": study.scores(audio.logits).tolist(),
        "text": [patched(told, moved, span) for span in windows.states],
        "audio": [patched(base.audio, audio.states, span) for span in windows.states],
        "back": [answers([Replace(to, base.audio, run.states[of])]) for of, to in windows.back],
        **{
            f"cut {name}": [answers([Attend(range(a, b + 1), base.answer, keys)]) for a, b in windows.cuts]
            for name, keys in cut.items()
        },
        **{f"no {name}": answers([Attend(every, base.answer, keys)]) for name, keys in cut.items()},
    }


def told_text(prefill: Prefill, batch: Sequence[Trial]) -> Tensor:
    """The text that tells T, (batch, length): the instruction, or the transcript."""
    in_transcript = torch.tensor([t.place == "transcript" for t in batch], device=prefill.mask.device)
    return torch.where(in_transcript[:, None], prefill.transcript, prefill.instruction)


def aligned(states: Tensor, donor: Prefill, base: Prefill, source: Tensor, target: Tensor) -> Tensor:
    """States of a donor prompt, (layers, batch, donor's length, width), at the places of the base prompt:
    those of `source` lie on `target`, one on one where they are as many, else the nearest."""
    layers, count, _, width = states.shape
    found = states.new_zeros(layers, count, base.mask.shape[1], width)
    for row in range(count):
        to, of = (m[row].nonzero()[:, 0] for m in (target, source))
        if len(to) and len(of):
            near = torch.linspace(0, len(of) - 1, len(to)).round().long().to(of.device)
            found[:, row, to] = states[:, row, of[near]]
    return found


def _as_long(study: Study, clip: Stimulus, donor: Stimulus) -> np.ndarray:
    """The donor's samples, cut or followed by silence to be as long as the clip: as many tokens of sound."""
    length = len(load_audio(clip.path, max_seconds=study.model.max_seconds))
    samples = load_audio(donor.path, max_seconds=study.model.max_seconds)[:length]
    return np.pad(samples, (0, length - len(samples)))


# ---- what it amounts to


def patching(study: Study, trials: Sequence[Trial], windows: Windows, rows: Store) -> Row:
    """Effects of every path by window, of all trials and by place.

    Returns:
        {group: {"trials", "speakers", "note", path: [cell by window], "back": [cell], "no text": cell,
        "no audio": cell, "whole text": cell, "whole audio": cell}, "windows": …}. A cell has "effect", the
        mean change in logits towards what the path would have (text patched or cut, sound back-patched:
        towards A; sound patched or cut: towards T), "normal", that by the change where the whole prompt or
        clip is another (patches only), and "flips", the share of answers that become the donor's among those
        that were not ("eligible").
    """
    own = [t for t in trials if t.key in rows]
    groups = {"all": own} | {
        place: [t for t in own if t.place == place] for place in sorted({t.place for t in own})
    }
    found: Row = {name: group_cells(study, part, rows) for name, part in groups.items() if part}
    spans = {"states": windows.states, "cuts": windows.cuts, "back": windows.back}
    return found | {"windows": {name: [list(span) for span in part] for name, part in spans.items()}}


def group_cells(study: Study, trials: Sequence[Trial], rows: Store) -> Row:
    clusters = clusters_of([t.clip for t in trials])
    base = _delta(study, trials, [rows[t.key]["base"] for t in trials])
    whole = {
        "text": base - _delta(study, trials, [rows[t.key]["text donor"] for t in trials]),
        "audio": _delta(study, trials, [rows[t.key]["audio donor"] for t in trials]) - base,
    }

    def cell(scores: Sequence[list[float]], towards: str, by: Floats | None) -> Row:
        side = 1 if towards == "T" else -1
        effect = side * (_delta(study, trials, scores) - base)
        target = [t.told if towards == "T" else t.clip.emotion for t in trials]
        before = [said(study.emotions, rows[t.key]["base"]) for t in trials]
        after = [said(study.emotions, s) for s in scores]
        open_ = np.array([b != w for b, w in zip(before, target, strict=True)], dtype=np.float64)
        flipped = np.array([a == w for a, w in zip(after, target, strict=True)], dtype=np.float64) * open_
        statistics = {"effect": mean(effect)}
        if by is not None:
            statistics["normal"] = replace(ratio(effect, by), top=None)
        if open_.any():
            statistics["flips"] = ratio(flipped, open_)
        return {"eligible": int(open_.sum()), **intervals(statistics, clusters)}

    def cells(name: str, towards: str, by: Floats | None = None) -> list[Row]:
        count = len(rows[trials[0].key][name])
        return [cell([rows[t.key][name][i] for t in trials], towards, by) for i in range(count)]

    single = {"no text": "A", "no audio": "T", "text donor": "A", "audio donor": "T"}
    return {
        "trials": len(trials),
        "speakers": clusters.speakers,
        "note": clusters.note,
        "base": intervals({"delta": mean(base)}, clusters)["delta"],
        "text": cells("text", "A", whole["text"]),
        "audio": cells("audio", "T", whole["audio"]),
        "back": cells("back", "A"),
        "cut text": cells("cut text", "A"),
        "cut audio": cells("cut audio", "T"),
        **{name: cell([rows[t.key][name] for t in trials], to, None) for name, to in single.items()},
    }


def _delta(study: Study, trials: Sequence[Trial], scores: Sequence[Sequence[float]]) -> Floats:
    """log p(T) − log p(A) of each trial."""
    pairs = [(study.index(str(t.told)), study.index(t.clip.emotion)) for t in trials]
    return np.array([s[told] - s[own] for s, (told, own) in zip(scores, pairs, strict=True)])
