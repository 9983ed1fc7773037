"""The runner of the tables, on small steps in place of trainings."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce  # noqa: E402
import table_plan  # noqa: E402
import table_steps  # noqa: E402
import table_systems  # noqa: E402

from aligncap.evaluation import evaluate  # noqa: E402

# what stands for `aligncap`: writes its words to --out (or a folder), may fail or take its time
FAKE = """
import hashlib, json, os, pathlib, sys, time
words = sys.argv[1:]
def of(name, default=None):
    return words[words.index(name) + 1] if name in words else default
with open(os.environ["JOURNAL"], "a") as file:
    row = {"words": words, "begin": time.time(), "threads": os.environ["OMP_NUM_THREADS"]}
    file.write(json.dumps(row) + "\\n")
if words[0] == "train":
    folder = pathlib.Path(of("--output_dir"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text("{}")
time.sleep(float(of("--sleep", 0)))
if "--fail" in words and not os.path.exists(of("--fail")):
    print("first line\\nthe disk is on fire")
    sys.exit(3)
out = pathlib.Path(of("--output_dir") or of("--out"))
if words[0] == "train":
    out = out / "weights"
out.parent.mkdir(parents=True, exist_ok=True)
if words[0] == "caption":
    rows = [json.loads(line) for line in open(of("--manifest"))]
    said = [{"id": r["id"], "audio": r["audio"], "caption": r["captions"][0]} for r in rows]
    out.write_text("".join(json.dumps(row) + "\\n" for row in said))
elif words[0] == "probe":
    tests = [pathlib.Path(path) for path in words[words.index("--test") + 1 : words.index("--out")]]
    row = {"layer": 3, "penalty": 1, "dev": 0.5} | {path.stem: 0.1 * len(path.stem) for path in tests}
    hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in tests}
    out.write_text(json.dumps({"layers": [row], "best_layer": 3, "tests": hashes}))
else:
    out.write_text(" ".join(words))
"""
TABLE = {
    "title": "T",
    "seeds": [0],
    "tests": ["test"],
    "metrics": ["emotion_uar", "bleu_1"],
    "against": "a",
    "resamples": 50,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run's data, a folder of tables, and steps that are fakes."""
    data = tmp_path / "run/data"
    data.mkdir(parents=True)
    emotions = ("angry", "sad", "happy", "calm") * 2
    rows = [
        {
            "id": f"u{i}",
            "audio": f"u{i}.wav",
            "root": ".",
            "corpus": "made",
            "language": "en",
            "speaker": f"s{i % 4}",
            "emotion": emotion,
            "captions": [f"The speaker sounds {emotion}.", f"A voice that is {emotion} and slow."],
        }
        for i, emotion in enumerate(emotions)
    ]
    for name in ("train", "dev", "test"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(evaluate, "find_wordnet", lambda: None)  # seconds to load, and no part of this
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(
        table_steps, "command", lambda words: [sys.executable, str(tmp_path / "fake.py"), *words]
    )
    return tmp_path


def system(name, run="build --out {at}/model", makes="{at}/model", **more):
    return {"name": name, "steps": [{"makes": makes, "run": run}], "model": "{at}/model", **more}


def tables(place, systems, **table):
    folder = place / "tables"
    folder.mkdir(exist_ok=True)
    (folder / "systems.yaml").write_text(yaml.safe_dump({"systems": systems}))
    shown = [row["name"] for row in systems if not row.get("hidden")]
    (folder / "x.yaml").write_text(yaml.safe_dump({**TABLE, "systems": shown, **table}))


def reproduced(place, *words):
    return reproduce.main(["table-x", "--run", str(place / "run"), "--tables", str(place / "tables"), *words])


def journal(place):
    path = place / "journal"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def made(place):
    return [" ".join(Path(w).stem if "/" in w else w for w in row["words"]) for row in journal(place)]


def out(place, name):
    return place / "run/tables" / name


def test_systems_run_in_order_with_what_they_need_and_once_for_all_seeds(place):
    tables(
        place,
        [
            system("b", "build --seed {seed} --from {system:t}/model --out {at}/model", needs=["t"]),
            system("a"),
            system("t", "build --teacher --out {at}/model", once=True, hidden=True),
        ],
        seeds=[0, 1],
    )
    assert reproduced(place, "--workers", "1") == 0
    words = [row["words"] for row in journal(place)]
    assert [w[0] for w in words] == ["build", "build", "caption"] + ["build", "caption"] * 3
    assert "--teacher" in words[0] and sum("--teacher" in w for w in words) == 1
    assert words[1][:5] == ["build", "--seed", "0", "--from", str(out(place, "systems/t-once/model"))]
    assert out(place, "captions/test/b-1.jsonl").is_file()


def test_what_stands_is_not_run_again_and_a_missing_product_is(place):
    tables(place, [system("a")])
    assert reproduced(place) == 0
    assert reproduced(place) == 0
    assert len(journal(place)) == 2
    out(place, "captions/test/a-0.jsonl").unlink()
    assert reproduced(place) == 0
    assert [row["words"][0] for row in journal(place)] == ["build", "caption", "caption"]


def test_a_failed_step_stops_its_own_system_only_and_is_named_with_its_log(place, capsys):
    flag = place / "mended"
    tables(
        place, [system("a", f"build --fail {flag} --out {{at}}/model"), system("b"), system("c", needs=["a"])]
    )
    assert reproduced(place) == 1
    said = capsys.readouterr()
    assert "a-0.1 ended with 3" in said.err and "the disk is on fire" in said.err
    assert out(place, "captions/test/b-0.jsonl").is_file()
    assert not out(place, "systems/c-0").exists()
    text = out(place, "x/table.md").read_text()
    assert "a (not run)" in text and "c (not run)" in text
    flag.write_text("")
    assert reproduced(place) == 0
    assert "not run" not in out(place, "x/table.md").read_text()


def test_a_step_that_makes_nothing_has_failed(place, capsys):
    tables(place, [system("a", makes="{at}/other")])
    assert reproduced(place) == 1
    assert "made no" in capsys.readouterr().err


def test_two_workers_run_side_by_side_and_share_the_cores(place, monkeypatch):
    monkeypatch.setattr(table_steps, "cores", lambda: 6)
    tables(place, [system(n, "build --sleep 0.8 --out {at}/model") for n in "ab"])
    assert reproduced(place, "--workers", "2") == 0
    first, second = (row for row in journal(place) if row["words"][0] == "build")
    assert second["begin"] - first["begin"] < 0.7
    assert first["threads"] == "3"


def test_changed_words_are_refused_until_redo_which_runs_what_follows_too(place, capsys):
    needy = system("b", "build --from {system:a}/model --out {at}/model", needs=["a"])
    tables(place, [system("a"), needy, system("c")])
    assert reproduced(place) == 0
    tables(place, [system("a", "build --steps 2 --out {at}/model"), needy, system("c")])
    assert reproduced(place) == 2
    said = capsys.readouterr().err
    assert (
        "a-0.1: changed: words were fewer, are --steps 2" in said
        and str(out(place, "systems/a-0/model")) in said
    )
    assert "b-0.1: stale: made before a-0.1" in said and "c-0.1" not in said
    before = len(journal(place))
    assert reproduced(place, "--redo") == 0
    assert len(journal(place)) == before + 4


def test_another_content_of_a_recipe_is_a_change_and_a_remark_is_not(place, capsys):
    recipe = place / "recipe.yaml"
    recipe.write_text("steps: 3\n")
    tables(place, [system("a", f"build --config {recipe} --out {{at}}/model")])
    assert reproduced(place) == 0
    recipe.write_text("# for a\nsteps: 3\n")
    assert reproduced(place) == 0
    recipe.write_text("steps: 4\n")
    assert reproduced(place) == 2
    assert "recipe.yaml" in capsys.readouterr().err


def test_dry_run_says_the_state_of_each_step_and_runs_nothing(place, capsys):
    tables(place, [system("a")])
    assert reproduced(place) == 0
    tables(place, [system("a"), system("b")])
    capsys.readouterr()
    assert reproduced(place, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["done", "done", "to", "to"]
    assert lines[-1] == "2 of 4 steps stand" and len(journal(place)) == 2


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(place):
    flag = place / "mended"
    train = f"train sft --fail {flag} --output_dir {{at}}/run"
    tables(place, [system("a", train, "{at}/run/weights")])
    assert reproduced(place) == 1
    flag.write_text("")
    assert reproduced(place) == 0
    first, second, caption = (row["words"] for row in journal(place))
    assert "--resume_from_checkpoint" not in first
    assert second == [*first, "--resume_from_checkpoint", "true"]
    record = json.loads(out(place, "done/a-0.1.json").read_text())
    assert record["attempts"] == 2 and record["seconds"] > 0 and record["words"] == first


def begun(place, *words):
    """The same in a process of its own, whose output goes to a file."""

    def go():
        sys.stdout = sys.stderr = (place / "said").open("w")
        code = reproduced(place, *words)
        sys.stdout.flush()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=go)
    process.start()
    return process


def wait_for(check, seconds=60):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "never came"
        time.sleep(0.05)


def test_killed_in_the_middle_it_goes_on_and_never_runs_a_step_twice_at_once(place):
    tables(place, [system("a", "train sft --sleep 3 --output_dir {at}/run", "{at}/run/weights"), system("b")])
    runner = begun(place, "--workers", "1")
    wait_for(lambda: journal(place))
    time.sleep(0.2)
    runner.kill()
    runner.join()
    began = journal(place)[0]["begin"]
    # the step lives on and holds its lock: the next run waits for its end, then takes it up
    assert reproduced(place, "--workers", "1") == 0
    trained = [row for row in journal(place) if row["words"][0] == "train"]
    assert len(trained) == 2 and trained[1]["begin"] - began >= 3
    assert trained[1]["words"][-2:] == ["--resume_from_checkpoint", "true"]
    assert out(place, "x/table.md").is_file()


def test_two_invocations_share_the_steps(place):
    tables(place, [system(n, "build --sleep 0.5 --out {at}/model") for n in "abc"])
    other = begun(place, "--workers", "1")
    wait_for(lambda: journal(place))
    assert reproduced(place, "--workers", "1") == 0
    other.join()
    assert other.exitcode == 0, (place / "said").read_text()
    assert len(journal(place)) == 6


def test_stopped_it_stops_its_steps_and_says_how_to_go_on(place):
    tables(place, [system("a", "build --sleep 60 --out {at}/model")])
    runner = begun(place)
    wait_for(lambda: journal(place))
    runner.terminate()
    runner.join(timeout=30)
    assert runner.exitcode == 130 and "goes on from there" in (place / "said").read_text()
    assert table_steps.take(table_plan.Step("a-0.1", "a", "0", (), Path(), ()), out(place, "")) is not None


def test_the_table_names_absent_weights_missing_seeds_and_claims(place, monkeypatch):
    monkeypatch.setattr(
        reproduce, "at_hand", lambda name: "weights not at hand" if name == "org/big" else None
    )
    tables(
        place,
        [
            system("a"),
            system("b", seeds=[0]),
            system("big", weights="{llm}", values={"llm": "org/big"}),
            system("c"),
        ],
        seeds=[0, 1],
        claims=[{"better": "b", "worse": "a", "by": ["emotion_uar"], "at_least": True}],
    )
    assert reproduced(place, "--systems", "a", "b", "--seeds", "0") == 0
    assert reproduced(place, "--systems", "a", "b") == 0
    text = out(place, "x/table.md").read_text()
    assert "b (seed 0 only)" in text and "big (weights not at hand)" in text and "c (not run)" in text
    assert "test: b ≥ a on Emotion UAR: holds (+0.000 [0.000, 0.000], p 1.000, 1/1 seeds)" in text
    record = json.loads(out(place, "x/run.json").read_text())
    source = record["captions"]["test/a-1"]
    assert len(source["sha256"]) == 64 and source["words"][0] == "caption"
    assert set(record["systems"]["a"]["seconds"]) == {"0", "1"}
    assert (out(place, "x/table.csv")).read_text().count("\n") == 1 + 4 * 2


def test_captions_from_elsewhere_are_a_system_without_steps(place):
    rows = (place / "run/data/test.jsonl").read_text().splitlines()
    said = [{"id": json.loads(r)["id"], "audio": "", "caption": "He sounds sad."} for r in rows]
    (place / "given-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    row = {"name": "given", "captions": str(place) + "/given-{seed}.jsonl"}
    tables(place, [system("a"), row], subsets={"test": {"two": ["angry", "sad"]}})
    assert reproduced(place) == 0
    csv = out(place, "x/table.csv").read_text()
    assert "test,given,given,0,,emotion_uar,0.25," in csv
    assert "test-two,given,given,0,,emotion_uar,0.5," in csv


def test_the_linear_probe_is_a_row_of_every_block_and_never_bold(place):
    tables(place, [system("a")], probe=True, subsets={"test": {"two": ["angry", "sad"]}})
    assert reproduced(place) == 0
    text = out(place, "x/table.md").read_text()
    assert text.count("| linear probe, layer 3 | 0.400 | – |") == 2  # best and last layer, "test"
    assert text.count("| linear probe, layer 3 | 0.800 | – |") == 2  # "test-two"
    words = journal(place)[0]["words"]
    assert words[0] == "probe" and words[-3] == str(out(place, "probe/test-two.jsonl"))
    assert reproduced(place) == 0 and len(journal(place)) == 3


@pytest.mark.parametrize(
    "table, system_row, message",
    [
        ({"metrics": ["emotion_uarr"]}, {}, "metric emotion_uarr"),
        ({"metrics": ["distinct_1"]}, {}, "no sum over clips"),
        ({"against": "z"}, {}, "against z"),
        ({"claims": [{"better": "a", "worse": "y", "by": ["bleu_1"]}]}, {}, "claim 1: y"),
        ({"titel": "x"}, {}, "'titel', nearest is \"title\""),
        ({"tests": ["nemo"]}, {}, "nemo.jsonl: no such manifest"),
        ({}, {"stepz": []}, "unknown key 'stepz'"),
        ({}, {"needs": ["q"]}, "needs q"),
        ({}, {"like": "q"}, "like q"),
        ({}, {"model": "{there}"}, "unknown placeholder"),
        ({}, {"more": "--x 1"}, "no training to add to"),
    ],
)
def test_mistakes_in_a_table_are_named(place, capsys, table, system_row, message):
    tables(place, [system("a") | system_row], **table)
    assert reproduced(place) == 2
    assert message in capsys.readouterr().err
    assert not journal(place)


def test_every_table_of_the_project_can_be_planned():
    folder = ROOT / "configs/tables"
    systems = table_systems.read_systems(folder / "systems.yaml")
    shown = set()
    for path in folder.glob("*.yaml"):
        if path.stem == "systems":
            continue
        assert f"reproduce.py table-{path.stem} " in path.read_text()
        spec = reproduce.read_spec(folder, f"table-{path.stem}", systems)
        run = Path("runs/r")
        plan = table_plan.make_plan(
            systems, list(spec.labels), spec.seeds, spec.tests, run, run / "tables", lambda name: None
        )
        shown |= set(spec.labels)
        for step in plan.steps.values():
            assert step.makes.is_relative_to(run / "tables"), step.id
            assert all("{" not in word for word in step.words), step.id
    assert shown >= {n for n, row in systems.items() if not row.get("hidden")}


def test_ablations_say_their_flag_last():
    systems = table_systems.read_systems(ROOT / "configs/tables/systems.yaml")
    assert systems["t2"]["steps"][0]["run"][-2:] == ["--temperature", "2"]
    assert systems["distill-no-p-act"]["needs"] == ["teacher-no-p-act"]
    assert systems["distill"]["steps"][0]["run"][-2:] == ["--output_dir", "{at}/run"]
    assert systems["llm-gpt2"]["values"] == {"llm": "gpt2"}
