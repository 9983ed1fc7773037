"""The dev score of `train prefer`: dev clips captioned greedily and judged by the offline rubric."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object

from aligncap.captions.emotions import emotion_of
from aligncap.captions.rubric import evidence, score
from aligncap.models.captioner import Captioner
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.speakers import speaker_name
from aligncap.prompts.acoustic import measured_cues
from aligncap.splits import choose_evenly
from aligncap.training.collators import audio_batch, pad_prompts
from aligncap.training.examples import ClipInputs, audio_files, read_captioned
from aligncap.training.prefer_arguments import PreferArguments


class DevScore:
    """Captions of a fixed choice of dev clips, scored: call it with the model under training."""

    def __init__(self, manifest: str, processor: AlignCapProcessor, args: PreferArguments) -> None:
        every = read_captioned(manifest, need_p_act=False)
        keys, paths = audio_files(manifest, every)
        chosen = choose_evenly(every, args.dev_clips, seed=0)
        self.utterances = [every[i] for i in chosen]
        # A speaker's norm is that of all the clips, not of those few that are captioned.
        known = evidence(every)
        self.evidence = [known[i] for i in chosen]
        self.keys, self.paths, self.speakers = keys, paths, [speaker_name(u) for u in every]
        self.clips = [(keys[i], paths[keys[i]]) for i in chosen]
        self.processor = processor
        self.inputs = ClipInputs(processor, None)
        self.batch, self.limit = args.per_device_eval_batch_size, args.max_response_tokens

    @torch.no_grad()
    def captions(self, model: Any, indices: list[int], sharded: bool = False) -> dict[int, str]:
        """Greedy captions of some of the clips."""
        found: dict[int, str] = {}
        rows = {i: self.inputs(*self.clips[i], measured_cues(self.utterances[i].cue_words)) for i in indices}
        ordered = sorted(indices, key=lambda i: -len(rows[i]["prompt_ids"]))
        for start in range(0, len(ordered), self.batch):
            part = ordered[start : start + self.batch]
            own = [rows[i] for i in part]
            inputs = pad_prompts([row["prompt_ids"] for row in own], self.processor.tokenizer.pad_token_id)
            inputs |= audio_batch(own, self.processor)
            output = model.generate(
                **{k: v.to(model.device) for k, v in inputs.items()},
                max_new_tokens=self.limit,
                do_sample=False,
                synced_gpus=sharded or None,  # weights in shards are gathered by all processes, or by none
            )
            texts = Captioner(model, self.processor).texts(output[:, inputs["input_ids"].shape[1] :])
            found.update(zip(part, texts, strict=True))
        return found

    def __call__(
        self, model: Any, process: int = 0, processes: int = 1, sharded: bool = False
    ) -> dict[str, float]:
        """Scores of the dev clips, each process captioning its share: of as many clips, since with weights in
        shards (`sharded`) all processes must take the same steps.

        Returns:
            rubric (mean overall, 0 to 10, fluency left out), uar of emotions, length in words, top_share (of
            the most frequent caption).
        """
        every = -(-len(self.clips) // processes) * processes
        share = [i % len(self.clips) for i in range(process, every, processes)]
        own = self.captions(model, share, sharded)
        parts = gather_object([own]) if processes > 1 else [own]
        captions = {i: text for part in parts for i, text in part.items()}
        texts = [captions[i] for i in range(len(self.clips))]
        right: dict[str, list[bool]] = {}
        for u, text in zip(self.utterances, texts, strict=True):
            if u.emotion is not None:
                right.setdefault(u.emotion, []).append(emotion_of(text) == u.emotion)
        scores = {
            "rubric": fmean(score(t, e).overall for t, e in zip(texts, self.evidence, strict=True)),
            "length": fmean(len(text.split()) for text in texts),
            "top_share": Counter(texts).most_common(1)[0][1] / len(texts),
        }
        if right:
            scores["uar"] = fmean(fmean(hits) for hits in right.values())
        return scores
