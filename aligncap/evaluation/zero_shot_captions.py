"""Captions for a zero-shot test: one file a corpus and seed, written once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligncap.errors import Faults, UserError
from aligncap.evaluation.zero_shot_scores import Corpus
from aligncap.io import file_sha256, write_json
from aligncap.models.caption_files import jobs_of_manifest, with_condition
from aligncap.models.captioner import Captioner
from aligncap.models.captioning import caption_jobs
from aligncap.models.checkpoints import model_key
from aligncap.models.precision import dtype_name


def caption_corpora(
    models: Sequence[str | Path],
    corpora: Sequence[Corpus],
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 32,
    max_new_tokens: int = 48,
    only: Sequence[str] | None = None,
    condition: str = "right",
    seed: int = 0,
) -> dict[str, list[Path]]:
    """Caption each corpus with each model into `folder`/CORPUS-NUMBER.jsonl; the files by corpus.

    Under a condition of what is heard instead (`aligncap.models.caption_files.with_condition`, drawn by
    `seed`) they are CORPUS-NUMBER-CONDITION.jsonl.

    Beside each file lies what made it (CORPUS-NUMBER.made_of.json): a file of the same model, clips and
    options stands, another is written anew, and what was stopped goes on. With `only` captions may name no
    emotion but these; an empty list stands for the corpus's own labels and those that its map renames.

    Raises:
        UserError: a file there was written by something else.
        Faults: clips that cannot be captioned.
    """
    tail = "" if condition == "right" else f"-{condition}"
    files = {
        corpus.name: [folder / f"{corpus.name}-{n}{tail}.jsonl" for n in range(len(models))]
        for corpus in corpora
    }
    kind = dtype_name(dtype, device)
    for number, model in enumerate(models):
        captioner: Captioner | None = None
        for corpus in corpora:
            out = files[corpus.name][number]
            settings = {
                "model": model_key(model),
                "dtype": kind,
                "max_new_tokens": max_new_tokens,
                "manifest": file_sha256(corpus.manifest),
                "clips": len(corpus.utterances),
            }
            if condition != "right":
                settings |= {"condition": condition, "seed": seed}
            emotions: list[str] = []
            if only is not None:
                own = {u.emotion for u in corpus.utterances if u.emotion}
                emotions = settings["emotions"] = sorted(only or own | set(corpus.label_map))
            if _stands(out, settings, corpus):
                continue
            captioner = captioner or Captioner.from_pretrained(model, device=device, dtype=kind)
            ids = {u.id for u in corpus.utterances}
            every = jobs_of_manifest(corpus.manifest)
            jobs = with_condition([job for job in every if job.id in ids], corpus.utterances, condition, seed)
            options = captioner.naming_only(emotions) if emotions else {}
            # Before the mark changes: a kill must not leave a file beside another one's mark.
            out.unlink(missing_ok=True)
            mark = _mark(out)
            write_json(mark, settings)
            options["max_new_tokens"] = max_new_tokens
            _, faults = caption_jobs(captioner, jobs, out, settings, batch_size, every=every, **options)
            if faults:
                raise Faults([f"{fault} (in {corpus.manifest}; mend it or leave it out)" for fault in faults])
    return files


def _mark(out: Path) -> Path:
    return out.with_suffix(".made_of.json")


def _stands(out: Path, settings: dict[str, Any], corpus: Corpus) -> bool:
    """Whether the finished file is of these settings and clips."""
    if not out.is_file():
        return False
    try:
        made_of = json.loads(_mark(out).read_text(encoding="utf-8"))
        ids = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise UserError(
            f"{out}: stands without {_mark(out).name}, so nothing tells which model wrote it; delete it, "
            f"choose another --captions-dir, or vouch for it with --captions {corpus.name}={out}"
        ) from None
    except (ValueError, KeyError, TypeError):
        return False
    return bool(made_of == settings and ids == [u.id for u in corpus.utterances])
