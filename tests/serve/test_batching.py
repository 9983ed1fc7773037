"""The queue: batches across requests, the same captions as alone, and no request lost with another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from contextlib import suppress

import httpx
import pytest
from served import captioner, slow, wav
from tiny import save_model, voice

from aligncap.audio.files import prepare_samples
from aligncap.cli import main
from aligncap.serve.batching import Batcher, Closed, Expired, Options

CLIPS = [prepare_samples(voice(0.3 + 0.05 * i, 120 + 10 * i, seed=i), 16_000) for i in range(16)]
OPTIONS = Options("tiny", max_new_tokens=6)


def test_sixteen_clients_get_the_captions_of_one_by_one():
    one = captioner(max_response_tokens=6)
    alone = [one(clip) for clip in CLIPS]
    sizes = []
    batcher = Batcher({"tiny": one}, 16, wait=0.2, on_batch=lambda n, _: sizes.append(n)).start()
    futures = [batcher.caption(clip, OPTIONS) for clip in CLIPS]
    assert [future.result(30)["caption"] for future in futures] == alone
    assert sizes == [16] and len(set(alone)) > 3
    batcher.close()


def test_batches_have_three_times_the_throughput_where_a_pass_costs_the_same():
    seconds = {}
    for size in (1, 16):
        batcher = Batcher({"tiny": slow(0.1)}, size).start()
        start = time.monotonic()
        wait([batcher.caption(clip, Options("tiny", max_new_tokens=1, confidence=False)) for clip in CLIPS])
        seconds[size] = time.monotonic() - start
        batcher.close()
    assert seconds[1] > 3 * seconds[16]


def test_requests_of_other_options_do_not_share_a_batch_and_the_oldest_is_first():
    one, order = captioner(), []
    batcher = Batcher({"tiny": one}, 4, wait=0.1)
    other = Options("tiny", max_new_tokens=2)
    for i, options in enumerate([OPTIONS, other, OPTIONS, other]):
        future = batcher.caption(CLIPS[i], options)
        future.add_done_callback(lambda _, i=i: order.append(i))
    batcher.call(lambda: order.append("call")).add_done_callback(lambda _: order.append(4))
    batcher.start().close()
    assert order == [0, 2, 1, 3, "call", 4]


def test_text_streams_row_by_row_in_a_batch():
    one = captioner()
    batcher = Batcher({"tiny": one}, 4, wait=0.1)
    told = {0: [], 2: []}
    futures = [
        batcher.caption(CLIPS[i], OPTIONS, on_text=told[i].append if i in told else None) for i in range(4)
    ]
    batcher.start().close()
    for i, pieces in told.items():
        assert " ".join("".join(pieces).split()) == futures[i].result()["caption"]


def test_a_listener_that_fails_does_not_end_the_batch():
    batcher = Batcher({"tiny": captioner()}, 2, wait=0.1)

    def left(_):
        raise RuntimeError("the loop is closed")

    futures = [batcher.caption(clip, OPTIONS, on_text=left) for clip in CLIPS[:2]]
    batcher.start().close()
    assert all(future.result()["caption"] for future in futures)


def test_a_clip_that_fails_does_not_take_the_others():
    batcher = Batcher({"tiny": captioner()}, 4, wait=0.1)
    futures = [batcher.caption(clip, OPTIONS) for clip in (CLIPS[0], CLIPS[1][:0], CLIPS[2])]
    batcher.start().close()
    assert futures[0].result()["caption"] and futures[2].result()["caption"]
    with pytest.raises(Exception, match="non-empty"):
        futures[1].result()


def test_what_was_given_up_or_is_too_late_does_not_run():
    batcher = Batcher({"tiny": captioner()}, 4, wait=0.0)
    gone, late = batcher.caption(CLIPS[0], OPTIONS), batcher.caption(CLIPS[1], OPTIONS, timeout=-1.0)
    gone.cancel()
    good = batcher.caption(CLIPS[2], OPTIONS)
    batcher.start().close()
    assert good.result()["caption"]
    with pytest.raises(CancelledError):
        gone.result()
    with pytest.raises(Expired):
        late.result()
    with pytest.raises(Closed):
        batcher.caption(CLIPS[0], OPTIONS)


def test_many_threads_lose_nothing():
    batcher, found = Batcher({"tiny": slow(0.0)}, 8, wait=0.001).start(), []
    options = Options("tiny", max_new_tokens=1, confidence=False)

    def client(i):
        found.append(batcher.caption(CLIPS[i % 16], options).result(60))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and batcher.waiting == 0
    batcher.close()


def test_without_the_extra_the_command_says_which(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("aligncap.serve.command.find_spec", lambda name: None if name == "gradio" else name)
    assert main(["serve", "--model", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "gradio" in err and "aligncap[serve]" in err and "fastapi" not in err
    monkeypatch.undo()
    assert main(["serve", "--model", "a", "b/a"]) == main(["serve", "--model", "a", "--examples", "b"]) == 2
    err = capsys.readouterr().err
    assert "name a is taken" in err and "a: no such folder" in err and "b: no such folder" in err


@pytest.mark.slow
def test_help_needs_no_extra():
    code = "import sys; sys.modules['fastapi'] = sys.modules['gradio'] = None; import aligncap.cli as c; "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit(c.main(['serve', '--help']))"])
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(stop, tmp_path):
    model = save_model(tmp_path / "model", max_response_tokens=3)
    (tmp_path / "temporary").mkdir()
    words = ["serve", "--model", str(model), "--port", str(free_port()), "--wait_ms", "300"]
    url = f"http://127.0.0.1:{words[4]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "aligncap", *words], env=os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    )
    try:
        for _ in range(600):
            with suppress(httpx.HTTPError):
                httpx.get(f"{url}/health")
                break
            time.sleep(0.2)
        sound = wav(seconds=0.6)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/captions", content=sound, timeout=60))
        )
        thread.start()
        time.sleep(0.15)
        process.send_signal(stop)
        thread.join()
        assert answers[0].status_code == 200 and process.wait(60) == 0
        assert list((tmp_path / "temporary").iterdir()) == []
    finally:
        process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
