"""Work shared over processes: what comes out is one process's, whoever is lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from threads import run
from tiny import make_model

from aligncap.cli import main
from aligncap.data.manifest import Utterance, audio_path, read_manifest, write_manifest
from aligncap.inference.batch import caption_jobs
from aligncap.inference.captioner import Captioner
from aligncap.inference.jobs import jobs_of_manifest
from aligncap.preferences import candidates, judge
from aligncap.preferences.candidates import CandidatesConfig, write_candidates
from aligncap.preferences.judge import JudgeConfig, judge_candidates, judge_rubric
from aligncap.training.caches import feature_cache, fill_features, fill_states
from aligncap.utils.distributed import ALONE, Gathered, Group, launched
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import write_jsonl
from aligncap.utils.journal import Journal, journaled
from aligncap.utils.tensor_cache import TensorCache

ROOT = Path(__file__).resolve().parents[2]
BATCHES = [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]


class Lost(BaseException):
    """A worker is killed."""


def square(done: list[Any], lost_at: str | None = None) -> Callable[[Sequence[str]], dict[str, int]]:
    def compute(batch: Sequence[str]) -> dict[str, int]:
        if lost_at in batch:
            raise Lost
        done.extend(batch)
        return {key: ord(key) ** 2 for key in batch}

    return compute


def work(out: Path, compute: Callable[[Sequence[str]], dict[str, int]]) -> Callable[[Group], dict[str, int]]:
    """A stage in small: squares, written in the order of the keys by the first process."""

    def stage(group: Group) -> dict[str, int]:
        with journaled(out, {"of": "squares"}, group) as journal:
            group.share_out(journal, BATCHES, compute, "squares")
            rows = {key: journal[key] for batch in BATCHES for key in batch}
            if group.rank == 0:
                write_jsonl(out, [rows])
        return rows

    return stage


@pytest.mark.parametrize("count", [2, 3, 6])
def test_each_batch_is_computed_once_and_everyone_has_all(count: int, tmp_path: Path) -> None:
    alone = work(tmp_path / "one", square([]))(ALONE)
    done: list[str] = []
    assert run(count, work(tmp_path / "many", square(done))) == [alone] * count
    assert sorted(done) == list("abcdefg")
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many", "one"]  # no parts are left


@pytest.mark.parametrize("again", [1, 2, 3])
def test_after_a_lost_worker_any_number_goes_on_and_repeats_nothing(again: int, tmp_path: Path) -> None:
    work(tmp_path / "one", square([]))(ALONE)
    out = tmp_path / "out"
    with pytest.raises(Lost):
        run(2, work(out, square([], lost_at="g")))  # the second has kept c, d
    parts = sorted(p.name for p in tmp_path.glob("out*"))
    assert parts == ["out.partial", "out.partial.1"]
    kept = Journal(out, {"of": "squares"}).rows
    done: list[str] = []
    run(again, work(out, square(done)))
    assert {"c", "d"} <= kept.keys() and sorted(done) == sorted(set("abcdefg") - kept.keys())
    assert out.read_bytes() == (tmp_path / "one").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "out"]


def test_a_torn_batch_is_made_again_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", {"of": "squares"}, 5)
    journal.write({"a": 97**2})
    journal.close(done=False)
    with (tmp_path / "out.partial.5").open("ab") as file:
        file.write(b'{"key": "b", "row": 9')  # a kill in mid-line
    done: list[str] = []
    work(tmp_path / "out", square(done))(ALONE)
    assert sorted(done) == list("abcdefg") and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_parts_of_other_settings_are_not_taken_up_and_go_with_the_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", {"of": "cubes"}, 1)
    journal.write({"a": 97**3})
    journal.close(done=False)
    assert work(tmp_path / "out", square([]))(ALONE)["a"] == 97**2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_told_and_other_errors_stay_themselves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        work(tmp_path / "file" / "out", square([]))(ALONE)
    with pytest.raises(OSError, match="no tokenizer"), journaled(tmp_path / "out", {}, ALONE):
        raise OSError("no tokenizer there")


def test_processes_read_each_others_parts(tmp_path: Path) -> None:
    out = tmp_path / "c[1].jsonl"
    first, second = Journal(out, {"a": 1}, 0), Journal(out, {"a": 1}, 1)
    second.write({"k": ["line\u2028separator"]})
    first.write({"j": []})
    first.reread()
    assert first.rows == {"j": [], "k": ["line\u2028separator"]}


def test_the_first_processs_list_counts_where_one_looked_later() -> None:
    """A process that sees more done than the first must not deal the rest out otherwise."""

    def stage(group: Group) -> dict[str, int]:
        store = Gathered(group)
        if group.rank == 1:
            store.write({"a": 1, "b": 1})
        group.share_out(store, BATCHES, square([]), "squares")
        return dict(store)

    assert all(set(rows) == set("abcdefg") for rows in run(2, stage))


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched("auto") == (ALONE, "auto")


@pytest.fixture(scope="module")
def relative():
    """A model that hears clips beside others of their session, which are work to share too."""
    model, processor = make_model(seed=3, emotions=["angry", "calm"])
    model.model.multi_modal_projector.emotion.weight.normal_(0, 9)
    return Captioner(model, processor)


def test_captions_of_processes_are_those_of_one(relative: Captioner, manifest: Path, tmp_path: Path) -> None:
    jobs = [replace(job, group="a") for job in jobs_of_manifest(manifest)]

    def stage(out: Path) -> Callable[[Group], Any]:
        return lambda group: caption_jobs(
            relative, jobs, out, {}, 2, kind="speaker", group=group, max_new_tokens=6
        )

    one = stage(tmp_path / "one")(ALONE)
    assert any(c is not None for c in relative.contexts([j.path for j in jobs], ["a"] * 8, "speaker"))
    assert run(2, stage(tmp_path / "two")) == [one] * 2
    assert run(3, stage(tmp_path / "three")) == [one] * 3
    files = [(tmp_path / name).read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[1] == files[2] and files[0].count(b"\n") == 8


def test_sampled_captions_do_not_depend_on_where_a_run_was_stopped(
    relative: Captioner, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, options = jobs_of_manifest(manifest), {"do_sample": True, "max_new_tokens": 12}
    whole, _ = caption_jobs(relative, jobs, tmp_path / "one", {}, 2, seed=1, **options)
    other, _ = caption_jobs(relative, jobs, None, {}, 2, seed=2, **options)
    assert [row["caption"] for row in whole] != [row["caption"] for row in other]
    plain, calls = relative.generate, []

    def dying(clips: Any, *rest: Any, **more: Any) -> list[str]:
        calls.append(len(clips))
        if len(calls) == 3:
            raise Lost
        return plain(clips, *rest, **more)

    monkeypatch.setattr(relative, "generate", dying)
    with pytest.raises(Lost):
        caption_jobs(relative, jobs, tmp_path / "out", {}, 2, seed=1, **options)
    assert caption_jobs(relative, jobs, tmp_path / "out", {}, 2, seed=1, **options)[0] == whole
    assert len(calls) == 5  # two, the one that was lost, the other two


def test_bad_files_are_told_by_all_in_the_jobs_order(
    relative: Captioner, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    for u in utterances:
        u.root = str(manifest.parent)
    utterances[2:2] = [Utterance("gone", str(tmp_path), "gone.wav", "made")]
    utterances.append(Utterance("lost", str(tmp_path), "lost.wav", "made"))
    write_manifest(tmp_path / "m.jsonl", utterances)
    jobs = jobs_of_manifest(tmp_path / "m.jsonl")
    found = run(
        2, lambda group: caption_jobs(relative, jobs, tmp_path / "o", {}, 2, group=group, max_new_tokens=4)
    )
    for rows, errors in found:
        assert len(rows) == 8
        assert ["gone.wav" in error for error in errors] == [True, False] and "lost.wav" in errors[1]


def test_several_processes_need_a_file_to_meet_in(relative: Captioner, manifest: Path) -> None:
    with pytest.raises(UserError, match="--out"):
        caption_jobs(relative, jobs_of_manifest(manifest), None, {}, 2, group=Group(0, 2))


def test_candidates_and_verdicts_of_processes_are_those_of_one(
    tiny: Any, parts: dict[str, str], manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    loaded = Captioner.from_pretrained(tmp_path / "model", device="cpu")  # threads cannot load at once
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **options: loaded)

    def stages(name: str) -> Callable[[Group], Any]:
        def both(group: Group) -> Any:
            c, s = tmp_path / f"{name}.c.jsonl", tmp_path / f"{name}.s.jsonl"
            for module in (candidates, judge):
                monkeypatch.setattr(module, "launched", lambda device="cpu": (by_thread[ident()], "cpu"))
            by_thread[ident()] = group
            files = {"model": str(tmp_path / "model"), "manifest": str(manifest), "out": str(c)}
            write_candidates(CandidatesConfig(**files, num=3, max_new_tokens=6, batch_size=2))
            config = JudgeConfig(candidates=str(c), out=str(s), references=1, fluency_model=parts["llm"])
            return judge_candidates(config).mean

        return both

    from threading import get_ident as ident

    monkeypatch.setattr(judge, "judge_rubric", partial(judge_rubric, batch_tokens=64))
    by_thread: dict[int, Group] = {}
    one = stages("one")(ALONE)
    assert run(2, stages("two")) == [one, one]
    for kind in ("c", "s"):
        files = [(tmp_path / f"{name}.{kind}.jsonl").read_bytes() for name in ("one", "two")]
        assert files[0] == files[1] and len(files[0]) > 1000
    assert not list(tmp_path.glob("*.partial*"))


def test_a_stopped_judge_goes_on_with_the_texts_that_are_left(
    parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligncap.inference import fluency

    texts = ["He sounds calm.", "She sounds very angry and loud.", "A soft voice.", "The speaker is sad."]
    settings = {"of": "texts"}
    whole = fluency.log_probs(texts, parts["llm"], batch_tokens=16, device="cpu")
    llm, tokenizer = fluency._load(parts["llm"], "cpu")
    calls: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Lost
        return llm(*args, **kwargs)

    counting.device = llm.device  # type: ignore[attr-defined]

    def read(group: Group) -> list[float]:
        with journaled(tmp_path / "s", settings, group) as journal:
            return fluency.log_probs(
                texts, batch_tokens=16, loaded=(counting, tokenizer), store=journal, group=group
            )

    with pytest.raises(Lost):
        read(ALONE)
    before = len(calls)
    assert read(ALONE) == whole
    total = len(fluency._batches({t: [0] * (1 + len(tokenizer(t)["input_ids"])) for t in texts}, 16))
    assert len(calls) - before == total - 1


def test_features_and_teacher_states_of_processes_are_those_of_one(manifest: Path, tmp_path: Path) -> None:
    model, processor = make_model()
    paths = {u.id: audio_path(manifest, u) for u in read_manifest(manifest)}
    pairs = [([3, 4, 5 + i], [6, 7 + i % 2, 0]) for i in range(9)]

    def stage(root: Path) -> Callable[[Group], tuple[TensorCache, TensorCache]]:
        def fill(group: Group) -> tuple[TensorCache, TensorCache]:
            features = feature_cache(root, model, processor)
            fill_features(features, model, processor, paths, batch=2, group=group)
            states = TensorCache(root / "teacher", {})
            fill_states(states, model.model.language_model, pairs, 1, torch.float32, batch=2, group=group)
            return features, states

        return fill

    one = stage(tmp_path / "one")(ALONE)
    for two in run(2, stage(tmp_path / "two")):
        for alone, shared in zip(one, two):
            assert sorted(alone._where) == sorted(shared._where)
            assert all(torch.equal(alone[key], shared[key]) for key in alone._where)
    assert len(list((tmp_path / "two" / "teacher").glob("*.safetensors"))) == 2  # one a process
    # A later fill finds nothing to do, and one with a new clip only that.
    assert run(2, stage(tmp_path / "two")) and len(list((tmp_path / "two/teacher").iterdir())) == 3


def test_clips_that_cannot_be_encoded_are_all_named_by_all(manifest: Path, tmp_path: Path) -> None:
    model, processor = make_model()
    paths = {u.id: audio_path(manifest, u) for u in read_manifest(manifest)}
    for name in ("bad0", "bad1"):
        paths[name] = tmp_path / f"{name}.wav"
        paths[name].write_text("no sound")

    def stage(group: Group) -> list[str]:
        with pytest.raises(UserErrors) as caught:
            fill_features(
                feature_cache(tmp_path, model, processor), model, processor, paths, batch=1, group=group
            )
        return caught.value.errors

    first, second = run(2, stage)
    assert first == second and len(first) == 2
    assert len(feature_cache(tmp_path, model, processor)._where) == 8  # what could be read is kept


def test_other_commands_and_judges_are_refused_under_a_launcher(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["validate", str(manifest)]) == 2
    assert "validate: runs in one process" in capsys.readouterr().err
    with pytest.raises(UserError, match="--concurrency"):
        judge_candidates(JudgeConfig(candidates="c.jsonl", out="s.jsonl", judge="openai", model="m"))


KILLED = """
import json, os, signal, sys, time
from aligncap.cli import main
from aligncap.inference.captioner import Captioner

def batches(rank):
    return len(open(f"calls.{rank}").readlines()) if os.path.exists(f"calls.{rank}") else 0

plain = Captioner.generate

def generate(self, clips, *rest, **more):
    if os.environ["RANK"] == os.environ.get("LOST") and batches(os.environ["RANK"]):
        while batches(0) < 2:  # then the first batch of the other process is on disk too
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    made = plain(self, clips, *rest, **more)
    with open(f"calls.{os.environ['RANK']}", "a") as file:
        file.write(f"{len(clips)}\\n")
    return made

Captioner.generate = generate
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_another_number_goes_on(
    tiny: Any, manifest: Path, tmp_path: Path
) -> None:
    """kill -9 of the second of two launched processes in its second batch; one goes on. Captions are
    sampled, so that a number drawn out of turn would show."""
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "killed.py").write_text(KILLED)
    words = ["caption", "--model", str(tmp_path / "model"), "--manifest", str(manifest), "--batch-size", "1"]
    words += ["--max-new-tokens", "8", "--temperature", "1", "--device", "cpu", "--no-speech-gate", "--out"]

    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs/accelerate/cpu2.yaml"]

    def start(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
            capture_output=True,
            text=True,
            timeout=280,
        )

    assert main([*words, str(tmp_path / "one.jsonl")]) == 0
    killed = start(*launcher, "killed.py", *words, "two.jsonl", LOST="1")
    assert killed.returncode != 0 and not (tmp_path / "two.jsonl").exists()
    parts = sorted(tmp_path.glob("two.jsonl.partial*"))
    kept = {json.loads(line)["key"] for part in parts for line in part.read_text().splitlines()[1:] if line}
    assert len(parts) == 2 and 2 <= len(kept) <= 7
    for calls in tmp_path.glob("calls.*"):
        calls.unlink()
    again = start("killed.py", *words, "two.jsonl", RANK="0")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("8 captions, 0 files") == 1  # the first process speaks
    made = sum(len(calls.read_text().split()) for calls in tmp_path.glob("calls.*"))
    assert made == 8 - len(kept)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_a_batch_is_read_while_the_one_before_is_at_work():
    order, began = [], {batch: threading.Event() for batch in range(3)}

    def read(batch):
        began[batch[0]].set()
        return -batch[0]

    def compute(batch, found):
        if batch[0] < 2:
            assert began[batch[0] + 1].wait(5)  # the next one is being read meanwhile
        order.append((batch[0], found, batch[0] + 2 in began and began[batch[0] + 2].is_set()))
        return {batch[0]: found}

    store = Gathered(ALONE)
    ALONE.share_out(store, [[0], [1], [2]], compute, "numbers", read=read)
    assert store == {0: 0, 1: -1, 2: -2}
    assert order == [(0, 0, False), (1, -1, False), (2, -2, False)]  # never two ahead


def test_what_reading_raises_stops_the_work():
    with pytest.raises(OSError, match="unreadable"):
        ALONE.share_out(Gathered(ALONE), [[0]], lambda batch, found: {}, "numbers", read=unreadable)


def unreadable(batch):
    raise OSError("unreadable")
