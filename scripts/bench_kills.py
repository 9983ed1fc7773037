"""Kill distill, prefer, candidates and judge with SIGKILL at random moments; resumed, is anything lost?

    python scripts/bench_kills.py runs/ravdess
    python scripts/bench_kills.py runs/ravdess --tiny

Each command runs once unbroken, on a slice of the run's data. Then the same command, in a fresh folder with
fresh caches, is killed at a moment drawn over the unbroken run's whole duration from its first file on,
resumed by the same command (training: with --resume_from_checkpoint true), killed again … Where it comes to
its end, losses and dev scores of every step, weights, caches and files, or the bytes of the rows, are held
against the unbroken run's; they must be equal, not close. `--tiny` has models of random weights in place of
the run's. The rubric judges without its language model then.
Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kills import (
    Case,
    Found,
    Result,
    compare_rows,
    compare_training,
    kill_and_compare,
    rows_phase,
    training_phase,
    unbroken,
    uniform,
)
from tiny_parts import write_parts

from aligncap.data.manifest import read_manifest, rebase, write_manifest
from aligncap.data.split import choose_evenly

CRITERIA = ("faithful", "emotion", "acoustics", "fluent", "specific")


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that takes a tenth of a second and always says the same of a caption."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.requests += 1
        time.sleep(0.1)
        marks = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
        said = {"reason": "fits"} | {name: mark % 11 for name, mark in zip(CRITERIA, marks, strict=False)}
        message = {"role": "assistant", "content": json.dumps(said)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 560}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub", "usage": usage}
        data = json.dumps(reply | {"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that were killed


def compare_paid(reference: Path, folder: Path) -> Found:
    """Rows as `compare_rows`; and no question is asked again once its answer is in the journal."""
    found = compare_rows("gpt.jsonl")(reference, folder)
    answered: Counter[str] = Counter()
    for line in (folder / "gpt.jsonl.verdicts.jsonl").read_text().splitlines()[1:]:
        event = json.loads(line)
        again = event["event"] == "sent" and answered[event["key"]]
        found.repeated += bool(again)
        answered[event["key"]] += event["event"] == "done" and event["outcome"] == "ok"
    found.repeated += sum(count > 1 for count in answered.values())
    return found


def slices(run: Path, work: Path, clips: int) -> tuple[Path, Path]:
    """A few clips of the run's train and dev manifests."""
    parts = []
    for name, count in (("train", clips), ("dev", max(4, clips // 3))):
        source, out = run / f"data/{name}.jsonl", work / f"{name}.jsonl"
        every = read_manifest(source)
        chosen = [every[i] for i in choose_evenly(every, count, 0)]
        write_manifest(out, rebase(chosen, source, out))
        parts.append(out)
    return parts[0], parts[1]


def training(words: list[object], steps: int) -> list[str]:
    options = ["--max_steps", steps, "--save_steps", 5, "--logging_steps", 1, "--warmup_steps", 2]
    return [str(word) for word in ("train", *words, *options, "--per_device_train_batch_size", 4)]


def cases(run: Path, work: Path, clips: int, tiny: bool) -> list[Case]:
    """The commands. Each but the first reads what an unbroken run of one before it wrote."""
    train, dev = slices(run, work, clips)
    encoder, llm, start = Path("whisper-base"), run / "teacher", run / "distill"
    if tiny:
        utterances = read_manifest(train) + read_manifest(dev)
        encoder, llm = write_parts(
            work / "parts", [text for u in utterances for text in u.captions + u.p_act]
        )
        start = work / "distill/unbroken/out"
    server = Server(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made, scored, pairs = (
        work / f"{name}/unbroken/{file}.jsonl"
        for name, file in (("candidates", "made"), ("judge rubric", "scored"), ("judge rubric", "pairs"))
    )
    align = ["--align_steps", 40] if tiny else []

    def distill(folder: Path) -> list[str]:
        words = ["distill", "--encoder", encoder, "--llm", llm, "--train_manifest", train, *align]
        words += ["--dev_manifest", dev, "--eval_steps", 10, "--gradient_accumulation_steps", 2]
        return training([*words, "--output_dir", folder / "out", "--cache_dir", folder / "cache"], 24)

    def prefer(folder: Path) -> list[str]:
        words = ["prefer", "--model", start, "--train_pairs", pairs, "--dev_manifest", dev, "--dev_clips", 8]
        words += ["--eval_steps", 5, "--max_response_tokens", 24]
        return training([*words, "--output_dir", folder / "out", "--cache_dir", folder / "cache"], 24)

    def candidates(folder: Path) -> list[str]:
        words = ["candidates", "--model", start, "--manifest", train, "--num", 4, "--batch-size", 4]
        return [str(word) for word in (*words, "--max-new-tokens", 24, "--out", folder / "made.jsonl")]

    def rubric(folder: Path) -> list[str]:
        words = ["judge", str(made), "--judge", "rubric", "--out", str(folder / "scored.jsonl")]
        return [*words, "--no-fluency"] if tiny else words  # its language model is a real one

    def openai(folder: Path) -> list[str]:
        words = ["judge", made, "--judge", "openai", "--model", "stub", "--concurrency", 4]
        words += [
            "--base-url",
            f"http://127.0.0.1:{server.server_port}/v1",
            "--price-in",
            1,
            "--price-out",
            4,
        ]
        return [str(word) for word in (*words, "--max-cost", 5, "--out", folder / "gpt.jsonl")]

    resume = ("--resume_from_checkpoint", "true")
    verdicts = clips * 5  # four candidates and a reference
    return [
        Case("distill", distill, resume, training_phase, compare_training),
        Case(
            "candidates", candidates, (), rows_phase("made.jsonl.partial", clips), compare_rows("made.jsonl")
        ),
        Case("judge rubric", rubric, (), lambda folder, began: "judging", compare_rows("scored.jsonl")),
        Case("judge openai", openai, (), rows_phase("gpt.jsonl.verdicts.jsonl", 2 * verdicts), compare_paid),
        Case("prefer", prefer, resume, training_phase, compare_training),
    ]


def make_pairs(scored: Path) -> None:
    """Pairs of an unbroken judge's verdicts, for `prefer`, written beside them and out of the comparison."""
    from aligncap.cli import main as aligncap

    words = ["pairs", str(scored), "--kinds", "reference-worst", "other-clip", "--max-length-ratio", "20"]
    if aligncap([*words, "--out", str(scored.with_name("pairs.jsonl"))]):
        raise SystemExit("no pairs could be made")


def table(results: list[Result]) -> str:
    lines = [
        "| verb | kills | lost | repeated | greatest difference | verdict | killed at |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        f = r.found
        numbers = f"{len(r.phases)} | {f.lost} | {f.repeated} | {f.greatest:g}"
        verdict = "equal" if f.equal else "**differs**"
        lines.append(f"| {r.name} | {numbers} | {verdict} | {'; '.join(r.phases)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--kills", type=int, default=20, help="in all, shared out among the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="models of random weights")
    parser.add_argument("--only", nargs="+", help="names of commands to kill; the others run unbroken")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    a = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    work = (a.work or Path(tempfile.mkdtemp())).resolve()
    work.mkdir(parents=True, exist_ok=True)
    todo = cases(a.run.resolve(), work, a.clips, a.tiny)
    chosen = [case.name for case in todo if not a.only or case.name in a.only]
    results = []
    for number, case in enumerate(todo):
        folder = work / case.name
        first, seconds = unbroken(case, folder / "unbroken")
        print(f"{case.name}: unbroken in {seconds:.1f} s, first file after {first:.1f} s", file=sys.stderr)
        if case.name in chosen:
            place = chosen.index(case.name)
            share = a.kills // len(chosen) + (place < a.kills % len(chosen))
            moments = uniform(first, seconds, 100 * a.seed + number)
            results.append(kill_and_compare(case, folder / "unbroken", folder, share, moments))
            print("\n".join(results[-1].found.errors), file=sys.stderr)
        if case.name == "judge rubric":
            make_pairs(folder / "unbroken/scored.jsonl")
    print(f"{' '.join(sys.argv)}: {sum(len(r.phases) for r in results)} kills -9\n\n{table(results)}")
    return 0 if all(r.found.equal for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
