"""Captions written by the teacher itself, as targets of distillation (DeSTA 2.5; BLSP-Emo)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aligncap.io import read_jsonl, write_jsonl
from aligncap.journal import journaled
from aligncap.processes import ALONE, Group
from aligncap.prompts.templates import end_token_id
from aligncap.tensor_cache import digest
from aligncap.training.collators import pad_prompts


@torch.no_grad()
def write_targets(
    path: Path, model: Any, tokenizer: Any, datasets: list[Any], batch: int = 32, group: Group = ALONE
) -> None:
    """Replace each row's response by the teacher's greedy caption; captions are kept in `path` and reused.

    A caption that does not end within the length limit keeps its reference, since a cut sentence teaches
    the student not to stop. Processes share the captions, and what is written survives a kill.
    """
    known = {tuple(r["prompt_ids"]): r["response_ids"] for r in read_jsonl(path)} if path.exists() else {}
    end = end_token_id(tokenizer)
    limit = max(len(r["response_ids"]) for d in datasets for r in d.rows) + 8
    missing = list(
        dict.fromkeys(tuple(r["teacher_prompt_ids"]) for d in datasets for r in d.rows) - known.keys()
    )
    missing.sort(key=len)
    prompts = {digest(list(prompt)): prompt for prompt in missing}
    keys = list(prompts)

    def compute(chosen: Sequence[str]) -> dict[str, list[int] | None]:
        inputs = pad_prompts([list(prompts[key]) for key in chosen], tokenizer.pad_token_id)
        width = inputs["input_ids"].shape[1]
        made = model.generate(
            **{name: value.to(model.device) for name, value in inputs.items()},
            max_new_tokens=limit,
            do_sample=False,
        )
        rows = zip(chosen, made[:, width:].tolist(), strict=True)
        return {key: row[: row.index(end) + 1] if end in row else None for key, row in rows}

    with journaled(path, {"limit": limit}, group) as journal:
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        group.share_out(journal, batches, compute, "teacher writes")
        # None is kept too: what has no end is not written again with other batch mates on a resume.
        known |= {prompts[key]: journal[key] for key in keys}
        if group.rank == 0:
            write_jsonl(path, [{"prompt_ids": list(p), "response_ids": r} for p, r in known.items()])
    for d in datasets:
        for row in d.rows:
            row["response_ids"] = known[tuple(row["teacher_prompt_ids"])] or row["response_ids"]
