"""One command at a time writes an output, and the second says who holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aligncap.cli import main
from aligncap.utils.distributed import ALONE
from aligncap.utils.errors import UserError
from aligncap.utils.journal import journaled
from aligncap.utils.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from aligncap.utils.distributed import ALONE
from aligncap.utils.journal import journaled
with journaled(Path(sys.argv[1]), {"of": "squares"}, ALONE) as journal:
    journal.write({"a": 1})
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that is in the middle of writing `out`."""
    (tmp_path / "holder.py").write_text(HOLDER)
    command = [sys.executable, str(tmp_path / "holder.py"), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_command_stops_and_says_who_holds_the_output(
    holder: subprocess.Popen[str], tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = (tmp_path / "out.partial").read_bytes()
    with pytest.raises(UserError) as caught, journaled(tmp_path / "out", {"of": "cubes"}, ALONE):
        raise AssertionError("two write one file")
    message = str(caught.value)
    assert f"process {holder.pid} on {os.uname().nodename} since {time.strftime('%Y-%m-')}" in message
    assert "holder.py" in message and "\n" not in message
    assert main(["join", str(manifest), "--out", str(tmp_path / "out")]) == 2  # any command, journal or not
    assert f"process {holder.pid}" in capsys.readouterr().err
    assert (tmp_path / "out.partial").read_bytes() == partial and not (tmp_path / "out").exists()


def test_threads_of_one_process_share_the_lock(tmp_path: Path) -> None:
    """filelock counts its holders without a lock of its own: threads that came at once refused each other."""
    together = threading.Barrier(8)

    def hold(_: int) -> None:
        for _ in range(20):
            together.wait(30)
            with locked(tmp_path / "out"):
                time.sleep(0.0005)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(8)))
    assert not list(tmp_path.glob(".out*"))


def test_a_killed_holder_does_not_block(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with journaled(tmp_path / "out", {"of": "squares"}, ALONE) as journal:
        assert journal.rows == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holder.py"]


def test_the_processes_of_one_launch_share_the_output(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        pass


def test_a_process_may_take_the_lock_again_and_leaves_no_trace(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out"
    with locked(out):
        with locked(str(out)):
            assert (out.parent / ".out.lock").is_file()
        assert (out.parent / ".out.lock").is_file()
    assert not list(tmp_path.iterdir())
    with locked(None):  # no output, no lock
        pass


def test_where_no_lock_can_be_written_the_command_itself_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file" / "out"):
        pass
