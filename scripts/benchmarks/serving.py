"""Load test of `aligncap serve` on loopback: latency, refusals, same captions, memory.

    python scripts/benchmarks/serving.py --model runs/model --clips clips/ --clients 16 64 --requests 96
    python scripts/benchmarks/serving.py --model runs/model --clips clips/ --short 2000 --clients 16

The server is a process of its own, started and stopped here; clients are threads of this one. Bounded in
requests and in time. Seconds of processor time are told beside those of the clock, which on a shared machine
say little. Each row is one number of clients; "one" are requests in turn, each after the other's answer.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

MOST_SECONDS = 500.0  # of one number of clients


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(model: str, words: list[str]) -> tuple[subprocess.Popen[bytes], str, dict[str, float]]:
    """The server's process, its address, and what its start took."""
    port, begin = free_port(), time.monotonic()
    command = [sys.executable, "-m", "aligncap", "serve", "--model", model, "--port", str(port), *words]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    while time.monotonic() - begin < 300 and process.poll() is None:
        try:
            httpx.get(f"{url}/health", timeout=2)
            break
        except httpx.HTTPError:
            time.sleep(0.1)
    else:
        process.kill()
        sys.exit("the server did not start")
    return process, url, {"start_s": time.monotonic() - begin, "start_cpu_s": cpu(process)}


def cpu(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def megabytes(process: subprocess.Popen[bytes]) -> float:
    return psutil.Process(process.pid).memory_info().rss / 1e6


def load(
    url: str,
    clips: list[bytes],
    clients: int,
    requests: int,
    process: subprocess.Popen[bytes],
    query: str = "",
) -> tuple[dict[str, Any], dict[int, str]]:
    """Numbers of `requests` by so many clients, and the captions by clip; refused ones are sent again."""
    captions: dict[int, str] = {}
    seconds: list[float] = []
    refused = failed = 0
    until = time.monotonic() + MOST_SECONDS

    def ask(number: int) -> None:
        nonlocal refused, failed
        place = number % len(clips)
        while time.monotonic() < until:
            begin = time.monotonic()
            answer = client.post(f"{url}/v1/captions{query}", content=clips[place], timeout=120)
            if answer.status_code == 429:
                refused += 1
                time.sleep(min(2.0, float(answer.headers["retry-after"])))
                continue
            if answer.status_code != 200:
                failed += 1
                return
            seconds.append(time.monotonic() - begin)
            captions[place] = answer.json()["caption"]
            return

    begin, used = time.monotonic(), cpu(process)
    with httpx.Client(limits=httpx.Limits(max_connections=clients)) as client:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(requests)))
    wall, used = time.monotonic() - begin, cpu(process) - used
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) if seconds else (0.0, 0.0, 0.0)
    row = {
        "clients": clients,
        "answered": len(seconds),
        "of": requests,
        "refused_429": refused,
        "failed": failed,
        "p50_s": round(float(p50), 3),
        "p90_s": round(float(p90), 3),
        "p99_s": round(float(p99), 3),
        "captions_per_s": round(len(seconds) / wall, 2),
        "cpu_s_a_caption": round(used / max(1, len(seconds)), 3),
        "memory_mb": round(megabytes(process)),
    }
    return row, captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", required=True, help="folder of sound files")
    parser.add_argument("--number", type=int, default=32, help="clips of the folder, the first by name")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=64, help="of each number of clients")
    parser.add_argument("--short", type=int, default=0, help="requests of a few tokens, to see memory grow")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--queue", type=int, default=48)
    parser.add_argument("--compare", action="store_true", help="with the captions of the library")
    parser.add_argument("--out", help="JSON to write")
    options = parser.parse_args()
    paths = sorted(p for p in Path(options.clips).rglob("*") if p.suffix in (".wav", ".flac"))[
        : options.number
    ]
    clips = [path.read_bytes() for path in paths]
    words = ["--dtype", options.dtype, "--queue", str(options.queue), "--timeout", "300"]
    process, url, found = started(options.model, words)
    result: dict[str, Any] = {"start": found, "rows": [], "threads": os.environ.get("OMP_NUM_THREADS")}
    captions: dict[int, str] = {}
    try:
        begin, used = time.monotonic(), cpu(process)
        httpx.post(f"{url}/v1/captions", content=clips[0], timeout=120).raise_for_status()
        result["first_caption_s"] = round(time.monotonic() - begin, 2)
        result["first_caption_cpu_s"] = round(cpu(process) - used, 2)
        for clients in options.clients:
            row, made = load(url, clips, clients, options.requests, process)
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            differ = sum(captions.get(place, text) != text for place, text in made.items())
            print(f"captions that differ from before: {differ} of {len(made)}", flush=True)
            captions |= made
        if options.short:
            sizes = []
            for part in range(4):
                row, _ = load(url, clips[:4], 16, options.short // 4, process, "?max_new_tokens=1")
                sizes.append(row["memory_mb"])
                print(f"{(part + 1) * options.short // 4} short requests: {sizes[-1]} MB", flush=True)
            result["short_memory_mb"] = sizes
    finally:
        process.terminate()
        result["exit_code"] = process.wait(120)
    if options.compare:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "captions.jsonl"
            files = [str(path) for path in paths]
            command = [sys.executable, "-m", "aligncap", "caption", *files, "--model", options.model]
            subprocess.run([*command, "--dtype", options.dtype, "--out", str(out)], check=True)
            rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        same = sum(captions.get(i) == row["caption"] for i, row in enumerate(rows))
        result["same_as_command"] = [same, len(rows)]
    print(json.dumps(result, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
