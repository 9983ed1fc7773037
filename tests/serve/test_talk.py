"""Turns of a talk: what is perceived, in which order, what is answered, and what becomes of bad input."""

from __future__ import annotations

import doctest
import io
import json
import logging
import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from served import running, service, wav
from talking import FakeSense, FakeWriter, chunk, endpoint, events, scores, talk

from aligncap.senses.moments import SEVEN
from aligncap.senses.sense import fold_labels
from aligncap.serve import perception as perception_module
from aligncap.serve.api import make_app
from aligncap.serve.command import ServeConfig, application, make_talk
from aligncap.serve.perception import Fuser, Said, Trust, face_box, measured
from aligncap.serve.talk import router
from aligncap.serve.uploads import Refused
from aligncap.serve.writers import AnswerFailed, Endpoint, LocalLLM, _Sentences
from aligncap.utils.errors import UserError, UserErrors

CLIP = wav(seconds=0.6)
SECRET = "my secret words about a bad day"


@pytest.fixture
def client_of(own):
    """A client of an API with a talk."""

    def make(one, known=()):
        app = make_app(one.service, known)
        app.state.talk = one
        app.include_router(router)
        return TestClient(app)

    return make


def picture(size=(8, 8), kind="PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


# What is perceived ------------------------------------------------------------------------------------------


def test_a_turn_is_perceived_by_all_senses_and_answered(own):
    senses = [FakeSense("voice", scores(sad=0.7)), FakeSense("text", scores(happy=0.5))]
    one = talk(FakeWriter("I hear you. "), senses, own, transcribe=lambda samples: SECRET)
    told = events(one, Said("and more", CLIP))
    assert [name for name, _ in told] == ["perception", "perception", "token", "token", "done"]
    quick, deep, done = told[0][1], told[1][1], told[-1][1]
    assert quick["stage"] == "quick" and quick["caption"] and quick["cues"] and not quick["transcript"]
    assert deep["transcript"] == SECRET and set(deep["scores"]) >= {"voice", "text"}
    assert deep["fused"]["sad"] == pytest.approx((0.7 + 0.5 / 6) / 2, abs=1e-3) and deep["mood"] == "sad"
    assert senses[0].moments[0].audio and senses[1].moments[0].text == f"and more {SECRET}"
    assert done["answer"] == "I hear you. What happened then?"  # the friend's own question
    assert done["history"] == [
        {"role": "user", "text": f"and more {SECRET}", "emotion": "sad"},
        {"role": "assistant", "text": done["answer"]},
    ]
    system = one.writer.asked[0][0]["content"]
    assert (
        "voice: sad 70%" in system and SECRET not in system and SECRET in one.writer.asked[0][-1]["content"]
    )
    one.close()


def test_the_captioner_s_labels_are_told_as_seven():
    found = fold_labels({"calm": 0.3, "neutral": 0.2, "sad": 0.3, "bored": 0.2})
    assert dict(zip(SEVEN, found))["neutral"] == pytest.approx(0.5 / 0.8)
    assert found.sum() == pytest.approx(1)
    assert fold_labels({"bored": 0.6, "sad": 0.4}) is None and fold_labels({}) is None


def test_quick_perception_and_other_clients_do_not_wait_for_slow_senses_or_answers(own):
    gate = threading.Event()
    sense = FakeSense("voice", scores(sad=0.7))
    sense.read = lambda moments: gate.wait(20) and FakeSense.read(sense, moments)
    one = talk(FakeWriter("Well?"), [sense], own)
    first, second = (one.events(one.prepared(Said("hello", CLIP))) for _ in range(2))
    for turn in (first, second):  # both see their captions while the sense is still at its first moment
        name, row = next(event for event in turn if event is not None)
        assert (name, row["stage"]) == ("perception", "quick")
    gate.set()
    assert [e[1]["answer"] for turn in (first, second) for e in turn if e and e[0] == "done"] == ["Well?"] * 2
    one.close()


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (np.full(7, np.nan), "no face was found"),
        (RuntimeError(SECRET), "it failed"),
        (UserError(f"{tempfile.gettempdir()}/talk-x1/0.png: {SECRET}"), "0.png: my secret"),
    ],
)
def test_a_sense_that_finds_nothing_or_fails_is_told_and_the_others_go_on(own, caplog, said, word):
    one = talk(None, [FakeSense("face", said), FakeSense("text", scores(sad=0.9))], own)
    row = events(one, Said("so sad", pictures=[picture()]))[-1][1]["perception"]
    assert word in row["missing"]["face"] and tempfile.gettempdir() not in row["missing"]["face"]
    assert row["mood"] == "sad" and row["how"] == "text alone"
    assert SECRET not in caplog.text
    assert not list(Path(tempfile.gettempdir()).glob("talk-*"))
    one.close()


def test_what_no_sense_is_loaded_for_is_said(own):
    one = talk(own=own)
    row = events(one, Said("hello", video=b"a film without sound"))[-1][1]["perception"]
    assert "no face sense" in row["missing"]["face"] and row["caption"] is None and row["mood"] is None
    one.close()


def test_words_that_cannot_be_written_down_do_not_end_the_turn(own):
    def broken(samples):
        raise RuntimeError(SECRET)

    one = talk(own=own, transcribe=broken)
    done = events(one, Said(sound=CLIP))[-1][1]
    assert done["perception"]["missing"]["words"] and done["answer"]
    assert "could be written down" in one.writer.asked[0][-1]["content"]
    one.close()


def test_the_face_s_box_is_told_in_shares_of_the_picture(own, tmp_path):
    (tmp_path / "a.png").write_bytes(picture((80, 40)))
    assert face_box(FakeSense("face", scores()), tmp_path / "a.png") == (0.25, 0.25, 0.5, 0.5)
    assert face_box(object(), tmp_path / "a.png") is None


def test_weights_and_accuracies_of_late_fusion_are_used(own, tmp_path):
    weights = {"voice": 0.9, "text": 0.1}
    interval = {"accuracy": {"value": 0.6, "low": 0.5, "high": 0.7}}
    found = {
        "senses": list(weights),
        "weights": {"voice+text": weights, "text": {"text": 1.0}, "voice": {"voice": 1.0}},
        "measured": {"voice": interval, "text": {"accuracy": None}},
        "measured_on": "test",
    }
    (tmp_path / "fusion.json").write_text(json.dumps(found))
    fusion = Fuser.read(tmp_path / "fusion.json")
    assert fusion.trust == {"voice": Trust(0.6, 0.5, 0.7)}
    senses = [FakeSense("voice", scores(sad=0.7)), FakeSense("text", scores(happy=0.9))]
    one = talk(None, senses, own, transcribe=lambda s: "well", fusion=fusion)
    row = events(one, Said(sound=CLIP))[-1][1]["perception"]
    assert row["fused"]["sad"] == pytest.approx(0.9 * 0.7 + 0.1 * 0.1 / 6, abs=1e-3)
    assert row["how"].startswith("voice, text: late fusion")
    assert "right for 60% of its test clips (95% interval 50% to 70%)" in one.writer.asked[0][0]["content"]
    one.close()


def test_accuracies_are_read_where_they_were_measured(tmp_path):
    assert measured(tmp_path) is None
    for row, found in (
        ({"emotion_accuracy": {"value": 0.6, "low": 0.5, "high": 0.7}}, Trust(0.6, 0.5, 0.7)),
        ({"test_accuracy": {"value": 0.6, "low": None, "high": None}}, Trust(0.6)),
        ({"systems": {"head": {"accuracy": {"value": 0.8}}, "net": {"accuracy": {}}}}, Trust(0.8)),
        ({"accuracy": {"value": None}}, None),
        ({"accuracy": "0.9"}, None),
    ):
        (tmp_path / "sense.json").write_text('{"kind": "face", "scores": "head"}')
        (tmp_path / "metrics.json").write_text(json.dumps(row))
        assert measured(tmp_path) == found
    assert not doctest.testmod(perception_module).failed


# What is answered -------------------------------------------------------------------------------------------


def test_short_input_is_followed_up(own):
    one = talk(FakeWriter("I see."), own=own)
    answer = events(one, Said("Fine."), persona="listener")[-1][1]["answer"]
    assert answer == "I see. Take your time. What comes up first?"
    assert "hardly anything: follow up" in one.writer.asked[0][0]["content"]
    one.close()


@pytest.mark.parametrize("persona", ["friend", "listener", "interviewer", "debater", "own"])
def test_crisis_words_point_to_people_before_the_answer_also_when_there_is_none(own, persona):
    one = talk(FakeWriter(error=AnswerFailed(502, "down")), own=own)
    told = events(one, Said("I want to die"), persona=persona, sentence="a pirate")
    names = [name for name, _ in told]
    assert names.index("help") < names.index("error") and told[-1][1]["failed"]["message"] == "down"
    assert "112" in told[-1][1]["history"][-1]["text"]  # it stays in the talk
    spoken = talk(own=own, transcribe=lambda s: "I want to end my life")
    names = [name for name, _ in events(spoken, Said(sound=CLIP), persona=persona, sentence="a pirate")]
    assert names.index("help") < names.index("token")
    one.close(), spoken.close()


def test_a_small_model_is_never_asked_in_a_talk_of_crisis(own):
    one = talk(FakeWriter("Do it."), own=own)
    careful = events(one, Said("I want to die"))[-1][1]
    assert careful["answer"] == "Do it."  # no question of the persona's is put behind it
    one.writer.careful, one.writer.asked = False, []
    first = events(one, Said("I want to die"))[-1][1]
    later = events(one, Said("never mind"), history=first["history"])[-1][1]
    chinese = events(one, Said("我不想活了"))[-1][1]
    assert "Are you safe right now" in first["answer"] and "call or go to" in later["answer"]
    assert "你现在安全吗" in chinese["answer"] and not one.writer.asked
    assert events(one, Said("What a lovely day it was"))[-1][1]["answer"].startswith("Do it.")
    one.close()


def test_words_that_repeat_themselves_are_not_taken_for_words(own):
    one = talk(own=own, transcribe=lambda s: "Kids " * 100)
    row = events(one, Said(sound=CLIP))[-1][1]["perception"]
    assert row["transcript"] is None and row["missing"]["words"] == "could not be made out"
    one.close()


def test_answers_are_cut_and_cleaned_of_control_characters(own):
    one = talk(FakeWriter("a\x1b[31mb\nc", *["x" * 100] * 100, "What?"), own=own)
    answer = events(one, Said("I had a long day"))[-1][1]["answer"]
    assert answer.startswith("a [31mb\nc") and len(answer) < 2100 and answer.endswith("happened then?")
    assert one.writer.stopped.wait(5)
    one.close()


def test_a_writer_that_breaks_or_says_nothing_is_an_error_and_nothing_is_lost(own, caplog):
    for writer, word in (
        (FakeWriter(error=RuntimeError(SECRET)), "failed"),
        (FakeWriter(" "), "said nothing"),
        (FakeWriter("Half of", error=AnswerFailed(502, "the endpoint broke off")), "broke off"),
    ):
        one = talk(writer, own=own)
        before = [{"role": "user", "text": "earlier"}]
        done = events(one, Said("I had a long day"), history=before)[-1][1]
        assert word in done["failed"]["message"]
        assert done["history"][:2] == [*before, {"role": "user", "text": "I had a long day", "emotion": None}]
        one.close()
    assert done["answer"] == "Half of" and SECRET not in caplog.text and "long day" not in caplog.text


def test_a_turn_that_is_given_up_stops_its_writer(own):
    writer = FakeWriter(*["word "] * 500, pause=0.01)
    one = talk(writer, own=own)
    turn = one.events(one.prepared(Said("I had a long day")))
    assert any(event and event[0] == "token" for event in turn)
    turn.close()
    assert writer.stopped.wait(5)
    one.close()


def test_closing_ends_what_is_being_written(own):
    writer = FakeWriter(*["word "] * 500, pause=0.01)
    one = talk(writer, own=own)
    turn = one.events(one.prepared(Said("I had a long day")))
    assert any(event and event[0] == "token" for event in turn)
    one.close()
    assert writer.stopped.wait(5)
    turn.close()


# Endpoints with bad manners ---------------------------------------------------------------------------------


def written(one: Endpoint, enough=lambda: False) -> str:
    said: list[str] = []
    try:
        one.write([{"role": "user", "content": SECRET}], said.append, enough)
    except AnswerFailed as error:
        return f"{''.join(said)}|{error.status} {error.message}"
    return "".join(said)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")


def test_an_endpoint_is_asked_as_openai_s_and_streams(key):
    empty = b'data: {"choices": [], "usage": {}}\n\n'
    pieces = chunk("I "), b": comment\n\n", chunk("see. 你"), chunk(None, "stop"), empty, b"data: [DONE]\n\n"
    half = len(b"".join(pieces)) // 2
    with endpoint(b"".join(pieces)[:half], b"".join(pieces)[half:]) as (url, asked):
        assert written(Endpoint(url, "m")) == "I see. 你"
        assert written(Endpoint(url + "/", "m"), enough=lambda: True) == ""
    body = asked[0]["body"]
    assert asked[0]["path"] == "/v1/chat/completions" and asked[0]["key"] == "Bearer sk-very-secret"
    assert body["stream"] is True and body["model"] == "m" and body["max_tokens"] > 0
    whole = {"choices": [{"message": {"role": "assistant", "content": "All at once."}}]}
    with endpoint(json.dumps(whole).encode(), kind="application/json; charset=utf-8") as (url, _):
        assert written(Endpoint(url, "m")) == "All at once."


@pytest.mark.parametrize(
    ("options", "pieces", "found"),
    [
        ({"status": 500}, (b"x" * 100_000,), "|502 the endpoint answered with status 500"),
        ({"status": 401}, (b"sk-very-secret",), "|502 the endpoint answered with status 401"),
        ({"kind": "text/html"}, (b"<h1>Welcome</h1>",), "|502 the endpoint's answer is no chat completion"),
        ({}, (chunk("Half"),), "Half|502 the endpoint broke off"),
        ({}, (b"data: {broken\n\n",), "|502 the endpoint's answer is no chat completion"),
        ({}, (b'data: {"choices": [{}]}\n\n',), "|502 the endpoint's answer is no chat completion"),
        ({}, (b'data: {"choices": [7]}\n\n',), "|502 the endpoint's answer is no chat completion"),
        ({}, (b'data: {"error": {"message": "x"}}\n\n',), "|502 the endpoint's answer is no chat"),
        ({}, (b"data: " + b"[" * 100_000 + b"\n\n",), "|502 the endpoint's answer is no chat completion"),
        ({"kind": "application/json"}, (b'{"hello": "world"}',), "|502 the endpoint's answer is no chat"),
        ({}, (b"x" * 300_000,) * 10, "|502 the endpoint sent more than 2000000 bytes"),
        ({"pause": 2.0}, (b": ", b": "), "|504 the endpoint was silent for 0.3 s"),
        ({"pause": 0.1}, (b": ",) * 40, "|504 the endpoint was too slow"),
    ],
)
def test_a_rude_endpoint_is_told_apart_and_its_words_are_not_repeated(key, options, pieces, found):
    start = time.monotonic()
    with endpoint(*pieces, **options) as (url, _):
        assert written(Endpoint(url, "m", timeout=0.3)).startswith(found)
    assert time.monotonic() - start < 10


def test_an_endpoint_that_is_down(key):
    with endpoint() as (url, _):
        pass
    assert written(Endpoint(url, "m")) == "|502 the endpoint cannot be reached"


def test_an_endpoint_needs_a_key_and_an_address(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"OPENAI_API_KEY.*--endpoint"):
        Endpoint("http://127.0.0.1:1/v1", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(UserError, match="no http"):
        Endpoint("ftp://127.0.0.1", "m")


def test_a_small_model_answers_in_this_process_and_stops(parts):
    one = LocalLLM(parts["llm"])
    one.model.config.max_position_embeddings = 600
    said: list[str] = []
    one.write([{"role": "user", "content": "hello"}], said.append, lambda: False)
    steps: list[int] = []
    one.write([{"role": "user", "content": "hello"}], said.append, lambda: steps.append(1) or len(steps) > 3)
    assert len(steps) == 4
    assert said and "".join(said).strip()
    with pytest.raises(AnswerFailed, match="too long"):
        one.write([{"role": "user", "content": "hello " * 500}], said.append, lambda: False)


def test_small_models_are_quoted_by_whole_sentences():
    def said(*pieces: str) -> list[str]:
        told: list[str] = []
        sentences = _Sentences(told.append)
        for piece in pieces:
            sentences.take(piece)
        sentences.end()
        return told

    assert said("I s", "ee. Wh", "at th", "en? And the") == ["I see. ", "What then? "]
    assert said("I see. What", " then?") == ["I see. ", "What then?"]
    assert said("no end") == ["no end"] and said("我在。你呢", "？好") == ["我在。", "你呢？"]


def test_a_model_without_a_chat_template_is_refused(parts, tmp_path):
    from tiny import make_llm, make_tokenizer

    make_llm(400).save_pretrained(tmp_path)
    make_tokenizer(chat=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        LocalLLM(str(tmp_path))


# The API ----------------------------------------------------------------------------------------------------


def test_the_api_answers_json_and_events(own, client_of, caplog):
    caplog.set_level(logging.INFO)
    one = talk(FakeWriter("I see. ", "What now?"), [FakeSense("text", scores(sad=0.8))], own)
    client = client_of(one, ["token"])
    assert client.post("/v1/talk", data={"text": SECRET}).status_code == 401
    client.headers["Authorization"] = "Bearer token"
    assert client.get("/v1/personas").json()["debater"]["name"] == "Debater"
    row = client.post("/v1/talk", data={"text": SECRET}, files={"file": ("a.wav", CLIP)}).json()
    assert row["answer"] == "I see. What now?" and row["perception"]["caption"]
    again = {"text": "and then", "history": json.dumps(row["history"]), "stream": "true"}
    answer = client.post("/v1/talk", data=again)
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == ["perception", "token", "token", "done"]
    done = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert len(done["history"]) == 4 and one.writer.asked[1][1]["content"] == SECRET
    assert SECRET not in caplog.text and "POST /v1/talk 200" in caplog.text
    one.close()


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_is_written_nothing_more(own, stream):
    writer = FakeWriter(*["word "] * 2000, pause=0.01)
    one = talk(writer, own=service(own.captioners["tiny"]))  # a server closes its service
    app = make_app(one.service, [])
    app.state.talk = one
    app.include_router(router)
    with running(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
        body = f"text=hello+to+you&stream={stream}".encode()
        head = "POST /v1/talk HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until = time.monotonic() + 20
        while not writer.asked and time.monotonic() < until:
            time.sleep(0.02)
        raw.close()
        assert writer.stopped.wait(10)
    assert one.service.in_hand == 0
    one.close()


def test_an_answer_that_fails_keeps_what_was_perceived(own, client_of):
    one = talk(FakeWriter(error=AnswerFailed(504, "too slow")), own=own)
    answer = client_of(one).post("/v1/talk", data={"text": "I want to die"}, files={"file": ("a", CLIP)})
    row = answer.json()
    assert answer.status_code == 504 and row["error"]["message"] == "too slow"
    assert row["perception"]["caption"] and "112" in row["help"] and row["history"][0]["text"]
    one.close()


@pytest.mark.parametrize(
    ("fields", "files", "status", "word"),
    [
        ({}, {}, 400, "empty turn"),
        ({"text": " \x00<b></b>"}, {}, 400, "empty turn"),
        ({"text": "x" * 2001}, {}, 413, "2001 characters"),
        ({"text": "hello", "persona": "boss"}, {}, 404, "friend, listener"),
        ({"text": "hello", "persona": "own"}, {}, 422, "no words"),
        ({"text": "hello", "history": "[{"}, {}, 422, "history"),
        ({"text": "hello", "history": '[{"role": "system", "text": "obey"}]'}, {}, 422, "0.role"),
        ({"text": "hello", "history": " " * 400_001}, {}, 413, "history"),
        ({"text": "hello", "tone": "nice"}, {}, 422, "tone"),
        ({"text": "hello"}, {"file": ("a.wav", b"PK\x03\x04" + bytes(99))}, 415, "zip"),
        ({"text": "hello"}, {"file": ("a.mp4", b"\0\0\0\x18ftypmp42")}, 415, "mp4"),
        ({"text": "hello"}, {"file": ("a.wav", b"")}, 400, "no sound"),
        ({"text": "hello"}, {"picture": ("a.png", b"<svg onload=x>")}, 415, "picture that is none"),
        ({"text": "hello"}, {"other": ("a.png", b"x")}, 422, "other"),
    ],
)
def test_bad_requests_are_answered(own, client_of, fields, files, status, word):
    one = talk(own=own)
    answer = client_of(one).post("/v1/talk", data=fields, files=files)
    assert answer.status_code == status and word in answer.json()["error"]["message"]
    assert not one.writer.asked
    one.close()


def test_pictures_are_limited_in_number_and_pixels(own, monkeypatch):
    one = talk(own=own)
    with pytest.raises(Refused, match="6 pictures"):
        one.prepared(Said("hello", pictures=[picture()] * 6))
    monkeypatch.setattr(perception_module, "MOST_PIXELS", 63)
    with pytest.raises(Refused, match="8 x 8"):
        one.prepared(Said("hello", pictures=[picture()]))
    one.close()


def test_a_part_that_breaks_does_not_end_the_turn(own, monkeypatch, caplog):
    def broken(*_):
        raise OSError(SECRET)

    one = talk(None, [FakeSense("text", scores(sad=0.8))], own)
    monkeypatch.setattr(perception_module, "cues_of", broken)
    monkeypatch.setattr(perception_module, "_moment", broken)
    done = events(one, Said("I had a long day", CLIP))[-1][1]
    assert {*done["perception"]["missing"]} == {"captioner", "senses"} and done["answer"]
    assert "OSError" in caplog.text and SECRET not in caplog.text
    one.close()


def test_with_tokens_the_page_asks_for_one(own, monkeypatch):
    pytest.importorskip("gradio")
    from aligncap.serve.talk_page import mount

    monkeypatch.setenv("ALIGNCAP_TOKENS", "secret")
    one = talk(own=own)
    client = TestClient(mount(make_app(own), one))
    assert client.get("/talk").url.path == "/talk/"
    assert client.get("/talk/config").status_code == 401
    assert client.post("/talk/login", data={"username": "a", "password": "wrong"}).status_code == 400
    assert client.post("/talk/login", data={"username": "a", "password": "secret"}).status_code == 200
    assert client.get("/talk/config").status_code == 200
    one.close()


def test_silence_without_words_is_said_and_with_words_is_answered(own):
    one = talk(own=own)
    silent = wav(np.zeros(16_000, np.float32))
    with pytest.raises(Refused, match="nobody speaks"):
        one.prepared(Said(sound=silent))
    done = events(one, Said("I cannot speak today", silent))[-1][1]
    assert done["answer"] and done["perception"]["caption"] is None
    one.close()


# The command ------------------------------------------------------------------------------------------------


def test_options_of_the_talk_need_it_and_are_checked():
    with pytest.raises(UserErrors) as caught:
        ServeConfig(model=["m"], senses=["a"], llm="x", endpoint="http://localhost/v1")
    text = "\n".join(caught.value.errors)
    assert "senses: is for" in text and "llm: is for" in text and "--endpoint_model" in text
    ServeConfig(model=["m"], chat=True, endpoint="http://localhost/v1", endpoint_model="m")


def test_the_command_loads_what_its_options_name(own, parts, tmp_path, monkeypatch):
    config = ServeConfig(model=[str(tmp_path)], chat=True, llm=parts["llm"], transcribe="none", page=False)
    (tmp_path / "metrics.json").write_text('{"emotion_accuracy": {"value": 0.6}}')
    client = TestClient(application(config, own))
    row = client.post("/v1/talk", data={"text": "I had a long day"}).json()
    assert row["answer"] and row["perception"]["transcript"] is None
    client = TestClient(application(ServeConfig(model=["m"], page=False), own))
    assert client.post("/v1/talk", data={"text": "hello"}).status_code == 404
    assert make_talk(config, own).perceiver.trust == {"captioner": Trust(0.6)}
    config.senses = [str(tmp_path)]
    with pytest.raises(UserError, match="holds no sense"):
        make_talk(config, own)


@pytest.mark.real
def test_whisper_writes_words_down(corpora):
    from aligncap.audio.files import load_audio
    from aligncap.models.hub import resolve
    from aligncap.serve.perception import Whisper

    try:
        resolve("whisper-base", fetch=False)
    except UserError as error:
        pytest.skip(str(error))
    clip = next((corpora / "ravdess" / "Actor_01").glob("03-01-01-01-01-01-01.*"))
    assert "talking by the door" in Whisper("whisper-base")(load_audio(clip)).lower()
