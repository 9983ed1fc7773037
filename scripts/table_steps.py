"""Running the steps of a table of reproduce.py: several at a time, locked, logged, resumed after a kill."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table_plan import Plan, Step, inputs, record_of, record_path, state, states

from aligncap.utils.io import write_json
from aligncap.utils.run_record import git_commit, versions


def command(words: Sequence[str]) -> list[str]:
    """The process of a step."""
    return [sys.executable, "-m", "aligncap.cli", *words]


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    lock: int
    record: dict[str, Any]
    start: float


def take(step: Step, out: Path) -> int | None:
    """A lock on a step, or None where another process has it.

    The step's own process holds it too: where this one is killed, another waits until the step has ended.
    """
    path = out / "locks" / step.id
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def log_path(step: Step, out: Path) -> Path:
    """Where a step's output goes, attempt after attempt."""
    return out / "logs" / f"{step.id}.log"


def _start(step: Step, plan: Plan, lock: int, threads: int) -> _Running:
    words = step.words
    log = log_path(step, plan.out)
    old = record_of(step, plan.out)
    spent = old.get("seconds", 0.0)
    if old and not old.get("finished") and log.exists() and "begun" in old:
        spent = max(spent, old.get("spent", 0.0) + log.stat().st_mtime - old["begun"])
    elif old.get("finished"):
        spent = 0.0  # what it made is gone
    if words[0] == "train" and any((step.owns / name).exists() for name in ("run.json", "base")):
        words = (*words, "--resume_from_checkpoint", "true")
    record = {
        "words": list(step.words),
        "inputs": inputs(step, plan.out),
        "after": {i: record_of(plan.steps[i], plan.out)["finished"] for i in step.after},
        "begun": time.time(),
        "spent": max(0.0, spent),
        "attempts": (0 if old.get("finished") else old.get("attempts", 0)) + 1,
        "threads": threads,
        "git_commit": git_commit(),
        "versions": versions(),
    }
    write_json(record_path(step, plan.out), record)
    step.makes.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("ab") as file:
        file.write(f"$ aligncap {shlex.join(words)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command(words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C comes from here, once
        )
    return _Running(step, process, lock, record, time.monotonic())


def _end(running: _Running, plan: Plan) -> str | None:
    """Write down how a step ended; why it failed, or None."""
    step, code = running.step, running.process.returncode
    record = dict(running.record)
    record["seconds"] = record["spent"] + time.monotonic() - running.start
    error = None
    if code != 0:
        error = f"ended with {code}"
    elif not step.makes.exists():
        error = f"ended well but made no {step.makes}"
    else:
        record["finished"] = time.time()
    record["spent"] = record["seconds"]
    record["begun"] = time.time()
    write_json(record_path(step, plan.out), record)
    os.close(running.lock)
    return error


def clock(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_steps(plan: Plan, workers: int, say: Callable[[str], None], pause: float = 0.2) -> dict[str, str]:
    """Run what is not done, `workers` at a time, in order; why steps failed, by id.

    A failed step stops those that need it, and nothing else. A step that another process is at is waited for.

    Raises:
        KeyboardInterrupt: after every process that was started has been told to stop and has.
    """
    threads = max(1, cores() // workers)
    begin = time.monotonic()
    failed: dict[str, str] = {}
    done = {name for name, (what, _) in states(plan).items() if what == "done"}
    total, before = len(plan.steps), len(done)
    running: dict[str, _Running] = {}
    elsewhere: set[str] = set()
    if before:
        say(f"{before} of {total} steps stand")
    try:
        while True:
            for name in [n for n, r in running.items() if r.process.poll() is not None]:
                ended = running.pop(name)
                error = _end(ended, plan)
                took = clock(time.monotonic() - ended.start)
                if error:
                    failed[name] = error
                else:
                    done.add(name)
                mark = f"failed ({error})" if error else "done"
                say(f"[{clock(time.monotonic() - begin)}] {len(done)}/{total} {name} {mark} in {took}")
            lost = set(failed)
            waiting = []
            for step in plan.steps.values():
                if lost & set(step.after):
                    lost.add(step.id)
                elif step.id not in (*done, *failed, *running):
                    waiting.append(step)
            if not waiting and not running:
                break
            for step in waiting:
                if len(running) >= workers:
                    break
                if not done.issuperset(step.after):
                    continue
                lock = take(step, plan.out)
                if lock is None:
                    if step.id not in elsewhere:
                        say(f"{step.id}: another process is at it; waiting")
                    elsewhere.add(step.id)
                    continue
                what = state(step, plan)[0]
                if what == "done":
                    done.add(step.id)
                    os.close(lock)
                    continue
                if what in ("changed", "stale"):
                    failed[step.id] = "was run by another process with other words"
                    os.close(lock)
                    continue
                verb = "goes on" if what == "begun" else "begins"
                say(f"[{clock(time.monotonic() - begin)}] {len(done)}/{total} {step.id} {verb}")
                running[step.id] = _start(step, plan, lock, threads)
            time.sleep(pause)
    except BaseException:
        _stop(running, plan)
        raise
    return failed


def _stop(running: Mapping[str, _Running], plan: Plan) -> None:
    """Ask processes to stop as Ctrl-C would (a training keeps a checkpoint), and see that they do."""
    for one in running.values():
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)
    for one in running.values():
        try:
            one.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        _end(one, plan)
