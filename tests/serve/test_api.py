"""The HTTP API: what it answers, what it refuses before decoding, and that nothing is lost."""

from __future__ import annotations

import base64
import io
import json
import logging
import struct
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from served import captioner, running, service, silence, slow, wav
from tiny import voice

from aligncap.serve.api import make_app
from aligncap.serve.uploads import Limits

CLIP = wav(seconds=0.6)


@pytest.fixture(scope="module")
def own():
    found = service(captioner(), batch_size=4)
    yield found
    found.close()


@pytest.fixture(scope="module")
def client(own):
    # without the lifespan's end, so that the service lives for the whole module
    return TestClient(make_app(own, []), raise_server_exceptions=False)


def post(client, data, path="/v1/captions", **query):
    return client.post(path, params=query, content=data, headers={"content-type": "audio/wav"})


def events(text: str) -> list[tuple[str, dict]]:
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in parts
    ]


def test_bytes_and_forms_give_the_caption_of_the_library(own, client):
    expected = own.captioners["tiny"](io_array(CLIP))
    row = post(client, CLIP).json()
    assert row["caption"] == expected and row["model"] == "tiny"
    form = client.post("/v1/captions", files={"file": ("a.wav", CLIP, "audio/wav")}, data={"model": "tiny"})
    assert form.json() == row
    assert {"emotion", "confidence", "probabilities"} <= row.keys()


def io_array(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def test_tokens_stream_and_the_last_event_is_the_whole(client):
    told = events(post(client, CLIP, stream=True).text)
    assert told[-1][0] == "done" and {name for name, _ in told[:-1]} == {"token"} and len(told) > 2
    streamed = " ".join("".join(row["text"] for _, row in told[:-1]).split())
    whole = told[-1][1]
    assert streamed == whole["caption"] and whole["rewritten"] is False
    assert whole["caption"] == post(client, CLIP).json()["caption"]


def test_a_caption_that_proofreading_wrote_again_says_so(monkeypatch):
    one = captioner()
    one.proofread = True
    own = service(one)
    texts = iter([True])
    monkeypatch.setattr(one, "at_fault", lambda text: next(texts, False))
    told = events(post(TestClient(make_app(own, [])), CLIP, stream=True).text)
    own.close()
    streamed = " ".join("".join(row["text"] for name, row in told if name == "token").split())
    assert told[-1][1]["rewritten"] is (streamed != told[-1][1]["caption"])


def test_cues_and_candidates_on_request(client):
    row = post(client, CLIP, cues=True, candidates=3).json()
    assert row["cues"]["words"]["pitch"] and abs(row["cues"]["measured"]["f0_median_hz"] - 150) < 3
    marks = [one["overall"] for one in row["candidates"]]
    assert 2 <= len(marks) <= 4 and marks == sorted(marks, reverse=True)
    assert all(one["why"] and one["scores"] for one in row["candidates"])
    assert row["caption"] in [one["caption"] for one in row["candidates"]]
    again = post(client, CLIP, cues=True, candidates=3).json()
    assert again == row


def test_sampling_depends_on_the_request_s_own_seed(client):
    def draw(seed):
        return post(client, CLIP, temperature=1.5, top_p=1, seed=seed).json()["caption"]

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone
    assert len(set(alone)) > 1


def test_silence_is_answered_without_the_model(client):
    row = post(client, wav(silence(1.0))).json()
    assert row == {"caption": "No speech is heard.", "emotion": None, "confidence": None, "speech": False}
    assert events(post(client, wav(silence(1.0)), stream=True).text)[0][0] == "done"


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(30_000_000))
    return buffer.getvalue()


def long_flac(hours: float) -> bytes:
    """Hours of silence, a few hundred kilobytes."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format="FLAC") as file:
        for _ in range(round(hours * 60)):
            file.write(np.zeros(8_000 * 60, dtype=np.int16))
    return buffer.getvalue()


def lying_wav() -> bytes:
    """A header that promises nothing and 40 s that follow it."""
    data = bytearray(wav(silence(40.0) + 0.01))
    data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    return bytes(data)


def channels(number: int) -> bytes:
    return wav(np.zeros((100, number), dtype=np.float32))


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 400, "no sound"),
        (zip_bomb(), 415, "zip"),
        (b"\0\0\0\x20ftypisom" + bytes(500), 415, "mp4"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), 415, "webm"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(500), 415, "RIFF"),
        (b"<script>alert(1)</script>", 415, "text"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), 415, "not a sound file"),
        (wav(voice(31.0)), 413, "/v1/timeline"),
        (lying_wav(), 413, "limit"),
        (wav(voice(0.05)), 422, "0.1"),
        (channels(200), 415, "200 channels"),
        (CLIP[:3000], 422, "cut off"),
        (wav(seconds=1.0) + b"", 200, ""),
    ],
)
def test_what_is_no_clip_is_refused_before_the_model(client, data, status, word):
    answer = post(client, data)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert word in answer.json()["error"]["message"]


def test_three_hours_are_refused_by_their_header(client, monkeypatch):
    data = long_flac(3)
    assert len(data) < 2_000_000
    monkeypatch.setattr("aligncap.serve.uploads.load_audio", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("aligncap.serve.service.make_timeline", lambda *_, **__: pytest.fail("decoded"))
    assert post(client, data).status_code == 413
    answer = post(client, data, "/v1/timeline")
    assert answer.status_code == 413 and "10800 s" in answer.json()["error"]["message"]


def test_bodies_are_limited_also_where_they_do_not_say_their_length(own):
    small = service(own.captioners["tiny"], limits=Limits(bytes=1000))
    client = TestClient(make_app(small, []))
    assert post(client, bytes(2000)).status_code == 413

    def pieces():
        for _ in range(1000):
            yield bytes(100)

    assert post(client, pieces()).status_code == 413
    small.close()


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ({"beams": 0}, 422, "beams"),
        ({"temprature": 1}, 422, "temprature"),
        ({"model": "other"}, 404, "tiny"),
        ({"emotions": "angry,hangry"}, 422, "hangry"),
    ],
)
def test_options_are_checked(client, query, status, word):
    answer = post(client, CLIP, **query)
    assert answer.status_code == status and word in answer.json()["error"]["message"]


def test_a_timeline_in_every_format(client, monkeypatch):
    monkeypatch.setattr(
        "aligncap.audio.speech.speech_probabilities",
        lambda x: np.where(
            np.abs(np.pad(x, (4096, 4096 + -len(x) % 512)).reshape(-1, 512)).mean(1) > 0.02, 0.9, 0
        ),
    )
    sound = np.concatenate([voice(2.2), silence(1), voice(2.2, 200), silence(1)])
    row = post(client, wav(sound), "/v1/timeline").json()
    assert len(row["utterances"]) == 2 and row["summary"].startswith("0:0")
    for kind, start in (("srt", "1\n00:00"), ("vtt", "WEBVTT"), ("csv", "start,end")):
        assert post(client, wav(sound), "/v1/timeline", format=kind).text.startswith(start)
    assert post(client, wav(sound), "/v1/timeline", format="exe").status_code == 422


def chat(data: bytes, **options) -> dict:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    text = {"type": "text", "text": "How does she sound?"}
    return {"model": "tiny", "messages": [{"role": "user", "content": [text, sound]}], **options}


def test_openai_s_own_client_needs_the_base_url_alone(own):
    from openai import APIStatusError, OpenAI

    own = service(own.captioners["tiny"])
    with running(make_app(own, ["secret"])) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.chat.completions.create(**chat(CLIP))
        expected = own.captioners["tiny"](io_array(CLIP))
        assert whole.choices[0].message.content == expected
        assert whole.usage.completion_tokens > 0
        parts = client.chat.completions.create(**chat(CLIP, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in parts) == expected
        with pytest.raises(APIStatusError, match="input_audio") as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])
        assert caught.value.status_code == 400
        for wrong in ("other", ""):
            with pytest.raises(APIStatusError) as caught:
                OpenAI(base_url=f"{url}/v1", api_key=wrong or "x", max_retries=0).models.list()
            assert caught.value.status_code == 401


def test_sound_in_a_chat_must_be_base64_and_no_address(own):
    client = TestClient(make_app(service(own.captioners["tiny"]), []))
    bad = chat(CLIP)
    bad["messages"][0]["content"][1]["input_audio"]["data"] = "https://example.org/a.wav"
    answer = client.post("/v1/chat/completions", json=bad)
    assert answer.status_code == 400 and "base64" in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 422
    assert client.post("/v1/chat/completions", content=b"{").status_code == 422


def test_a_chat_s_text_reaches_only_a_model_that_was_taught_to_answer(monkeypatch):
    one = captioner()
    asked = []
    monkeypatch.setattr(one, "asking", lambda text: asked.append(text) or one)
    for instructions in (False, True):
        own = service(one, instructions=instructions)
        assert TestClient(make_app(own, [])).post("/v1/chat/completions", json=chat(CLIP)).status_code == 200
        own.close()
    assert asked == ["How does she sound?"]


def test_health_metrics_and_paths(own):
    own = service(own.captioners["tiny"])
    client = TestClient(make_app(own, []))
    assert client.get("/health").json()["status"] == "ok"
    post(client, CLIP)
    text = client.get("/metrics").text
    assert 'aligncap_requests_total{path="/v1/captions",status="200"} 1.0' in text
    assert "aligncap_batch_clips_count 1.0" in text and "aligncap_audio_seconds_total 0.6" in text
    assert client.get("/v1/nothing").status_code == 404
    own.close()
    assert client.get("/health").status_code == 503
    assert post(client, CLIP).status_code == 503


def test_tokens_guard_all_but_health(own):
    client = TestClient(make_app(service(own.captioners["tiny"]), ["one", "two"]))
    assert client.get("/health").status_code == 200
    for path in ("/metrics", "/v1/models"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer on"}).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer two"}).status_code == 200
    answer = post(client, CLIP)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_two_hundred_clients_get_an_answer_or_429_and_lose_nothing():
    own = service(slow(0.02), most=16, batch_size=8)
    with running(make_app(own, [])) as url, httpx.Client(limits=httpx.Limits(max_connections=200)) as client:

        def ask(_):
            return client.post(f"{url}/v1/captions", content=CLIP, timeout=60)

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
        codes = {answer.status_code for answer in answers}
        assert codes == {200, 429}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert own.in_hand == 0 and own.batcher.waiting == 0
        assert client.post(f"{url}/v1/captions", content=CLIP, timeout=60).status_code == 200


def test_a_client_that_leaves_gives_its_place_back_and_is_not_captioned():
    one = slow(0.4)
    own = service(one, batch_size=1)
    with running(make_app(own, [])) as url:
        first = threading.Thread(target=lambda: httpx.post(f"{url}/v1/captions", content=CLIP, timeout=30))
        first.start()
        for stream in ("false", "true"):
            with pytest.raises(httpx.ReadTimeout):
                with httpx.stream(
                    "POST", f"{url}/v1/captions?stream={stream}", content=CLIP, timeout=0.15
                ) as answer:
                    list(answer.iter_lines())
        first.join()
        last = httpx.post(f"{url}/v1/captions", content=CLIP, timeout=30)
        assert last.status_code == 200
        until = time.monotonic() + 10  # a busy machine finds out late who has left
        while own.in_hand and time.monotonic() < until:
            time.sleep(0.02)
        assert own.in_hand == 0
    assert len(one.batches) <= 3  # not those that left before their turn


def test_what_waits_too_long_is_told_so():
    own = service(slow(0.5), batch_size=1, timeout=0.1)
    with running(make_app(own, [])) as url, ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda _: httpx.post(f"{url}/v1/captions", content=CLIP, timeout=30), range(3))
        )
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]


def test_a_shut_down_finishes_what_is_in_hand():
    own = service(slow(0.3), batch_size=2)
    found = []
    with running(make_app(own, [])) as url:
        threads = [
            threading.Thread(
                target=lambda: found.append(httpx.post(f"{url}/v1/captions", content=CLIP, timeout=30))
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        while own.in_hand < 6:
            pass
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200] * 6
    assert own.closing and not own.batcher._thread.is_alive()


def test_the_log_has_no_content_and_no_file_stays(own, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = TestClient(make_app(service(own.captioners["tiny"]), []))
    big = wav(np.stack([voice(25.0)] * 4, 1), rate=16_000)  # more than a form keeps in memory
    with caplog.at_level(logging.INFO):
        row = client.post("/v1/captions?seed=77", files={"file": ("secret-name.wav", big)}).json()
        client.post("/v1/timeline", files={"file": ("secret-name.wav", CLIP)})
    told = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("aligncap"))
    assert "/v1/captions 200" in told
    for secret in ("secret-name", "77", row["caption"]):
        assert secret not in told
    assert list(Path(tmp_path).iterdir()) == []
