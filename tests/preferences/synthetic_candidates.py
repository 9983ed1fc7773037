"""Candidates of made clips, and a judge of them that can be run in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stub_server import PRICE_IN, PRICE_OUT

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.preferences.judge import JudgeConfig, judge_candidates

KEY = "sk-not-to-be-seen-123"


def make_candidates(folder: Path, clips: int = 3, each: int = 2) -> Path:
    """`folder/c.jsonl` with candidates, and `folder/data/m.jsonl` with their clips (without sound files)."""
    utterances = [
        Utterance(
            id=f"clip{i}",
            root="audio",
            audio=f"clip{i}.wav",
            corpus="made",
            speaker="s1",
            gender="female",
            transcript="Kids are talking by the door.",
            emotion="angry",
            captions=["She sounds angry and loud.", "An angry voice, high and fast."],
            cue_words={"pitch": "high", "effort": "loud"},
        )
        for i in range(clips)
    ]
    (folder / "data").mkdir(exist_ok=True)
    write_manifest(folder / "data" / "m.jsonl", utterances)
    rows = [
        {
            "id": u.id,
            "audio": u.audio,
            "candidate": n,
            "caption": f"She sounds angry, number {i} {n}.",
            "model": "made",
            "seed": 0,
            "settings": {
                "num": each,
                "temperature": 1.0,
                "top_p": 0.9,
                "max_new_tokens": 40,
                "dtype": "float32",
            },
            "manifest": "data/m.jsonl",
        }
        for i, u in enumerate(utterances)
        for n in range(each)
    ]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(path: Path, url: str, **options: Any) -> JudgeConfig:
    """Options that put the captions of `path` to a stub's model."""
    chosen = {"model": "m", "out": str(path.with_name("s.jsonl")), "references": 0, "backoff": 0.01}
    prices = {"price_in": PRICE_IN, "price_out": PRICE_OUT}
    return JudgeConfig(candidates=str(path), judge="openai", base_url=url, **(chosen | prices | options))


def judge_in_a_process_of_its_own(path: Path, out: Path, url: str, concurrency: int, cap: float) -> None:
    limits = {"concurrency": concurrency, "timeout": 1.5, "retries": 12, "backoff": 0.02, "max_cost": cap}
    done = judge_candidates(asked(path, url, out=str(out), **limits))
    sys.exit(0 if done.complete else "\n".join(done.lines))
