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

from aligncap.evaluation import scoring  # noqa: E402

# stands for `aligncap`: writes its words to --out (or a folder), may fail or take its time
FAKE = """
import hashlib, json, os, pathlib, sys, time
words = sys.argv[1:]
def of(name, default=None):
    return words[words.index(name) + 1] if name in words else default
with open(os.environ["JOURNAL"], "a") as file:
    row = {"words": words, "begin": time.time()}
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
    out = out / ("config.json" if words[1] == "teacher" else "weights")
elif words[0] == "merge":
    out = out / "config.json"
out.parent.mkdir(parents=True, exist_ok=True)
if words[0] == "caption":
    rows = [json.loads(line) for line in open(of("--manifest"))]
    said = [{"id": r["id"], "audio": r["audio"], "caption": r["captions"][0]} for r in rows]
    out.write_text("".join(json.dumps(row) + "\\n" for row in said))
elif words[0] == "split":
    rows = open(words[1]).read().splitlines(keepends=True)
    of_fold = [json.loads(row)["speaker"] == f"s{of('--fold')}" for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev", "test"):
        kept = [row for row, own in zip(rows, of_fold) if own == (name == "test")]
        (out / f"{name}.jsonl").write_text("".join(kept))
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
            "corpus": "synthetic",
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
    monkeypatch.setattr(scoring, "find_wordnet", lambda: None)  # seconds to load, and no part of this
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(reproduce, "PROGRAM", [sys.executable, str(tmp_path / "fake.py")])
    monkeypatch.setattr(reproduce, "TABLES", tmp_path / "tables")
    return tmp_path


def system(run="join --out {at}/model", makes="{at}/model", **more):
    return {"steps": [{"makes": makes, "run": run.split()}], "model": "{at}/model", **more}


def tables(place, systems, **table):
    folder = place / "tables"
    folder.mkdir(exist_ok=True)
    (folder / "systems.yaml").write_text(yaml.safe_dump(systems))
    shown = [name for name, row in systems.items() if row.get("model")]
    (folder / "x.yaml").write_text(yaml.safe_dump({**TABLE, "systems": shown, **table}))


def reproduced(place, *words):
    return reproduce.main(["table-x", "--run", str(place / "run"), *words])


def journal(place):
    path = place / "journal"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def out(place, name):
    return place / "run/tables" / name


def test_systems_run_in_order_with_what_they_need_and_once_for_all_seeds(place):
    teacher = system("join --teacher --out {at}/model", once=True, model="")
    needy = system("join --seed {seed} --from {system:t}/model --out {at}/model", needs=["t"])
    tables(place, {"b": needy, "a": system(), "t": teacher}, seeds=[0, 1])
    assert reproduced(place) == 0
    words = [row["words"] for row in journal(place)]
    assert [w[0] for w in words] == ["join", "join", "caption"] + ["join", "caption"] * 3
    assert "--teacher" in words[0] and sum("--teacher" in w for w in words) == 1
    assert words[1][:5] == ["join", "--seed", "0", "--from", str(out(place, "systems/t-once/model"))]
    assert out(place, "captions/test/b-1.jsonl").is_file()


def test_what_exists_is_not_made_again_and_a_missing_file_is(place):
    tables(place, {"a": system()})
    assert reproduced(place) == 0
    assert reproduced(place) == 0
    assert len(journal(place)) == 2
    out(place, "captions/test/a-0.jsonl").unlink()
    assert reproduced(place) == 0
    assert [row["words"][0] for row in journal(place)] == ["join", "caption", "caption"]


def test_a_failed_step_stops_its_own_system_only_and_is_named_with_its_log(place, capsys):
    flag = place / "mended"
    failing = system(f"join --fail {flag} --out {{at}}/model")
    tables(place, {"a": failing, "b": system(), "c": system(needs=["a"])})
    assert reproduced(place) == 1
    printed = capsys.readouterr()
    assert "a-0.1 ended with 3" in printed.err and "the disk is on fire" in printed.err
    assert "c-0.1 needs a-0.1" in printed.err
    assert out(place, "captions/test/b-0.jsonl").is_file()
    assert not out(place, "systems/c-0").exists()
    text = out(place, "x/table.md").read_text()
    assert "a (not run)" in text and "c (not run)" in text
    flag.write_text("")
    assert reproduced(place) == 0
    assert "not run" not in out(place, "x/table.md").read_text()


def test_a_step_that_makes_nothing_has_failed(place, capsys):
    tables(place, {"a": system(makes="{at}/other")})
    assert reproduced(place) == 1
    assert "made no" in capsys.readouterr().err


def test_a_changed_command_is_refused_until_redo_which_runs_what_follows_too(place, capsys):
    systems = {"a": system(), "b": system("join --from {system:a}/model --out {at}/model", needs=["a"])}
    tables(place, systems | {"c": system()})
    assert reproduced(place) == 0
    systems["a"] = system("join --steps 2 --out {at}/model")
    tables(place, systems | {"c": system()})
    assert reproduced(place) == 2
    printed = capsys.readouterr().err
    assert "a-0.1: changed: was join --out" in printed and str(out(place, "systems/a-0/model")) in printed
    assert "c-0.1" not in printed
    before = len(journal(place))
    assert reproduced(place, "--redo") == 0
    assert len(journal(place)) == before + 3  # b's model is made anew, of the same bytes as before


def test_another_content_of_a_recipe_is_a_change_and_a_remark_is_not(place, capsys):
    recipe = place / "recipe.yaml"
    recipe.write_text("steps: 3\n")
    tables(place, {"a": system(f"join --config {recipe} --out {{at}}/model")})
    assert reproduced(place) == 0
    recipe.write_text("# for a\nsteps: 3\n")
    assert reproduced(place) == 0
    recipe.write_text("steps: 4\n")
    assert reproduced(place) == 2
    assert "recipe.yaml" in capsys.readouterr().err


def test_dry_run_prints_each_command_with_its_state_and_runs_nothing(place, capsys):
    tables(place, {"a": system()})
    assert reproduced(place) == 0
    tables(place, {"a": system(), "b": system()})
    capsys.readouterr()
    assert reproduced(place, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["done", "done", "to", "to"]
    assert lines[2].endswith(f"b-0.1: aligncap join --out {out(place, 'systems/b-0/model')}")
    assert len(journal(place)) == 2


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(place):
    flag = place / "mended"
    tables(place, {"a": system(f"train sft --fail {flag} --output_dir {{at}}/run", "{at}/run/weights")})
    assert reproduced(place) == 1
    flag.write_text("")
    assert reproduced(place) == 0
    first, second, _ = (row["words"] for row in journal(place))
    assert "--resume_from_checkpoint" not in first
    assert second == [*first, "--resume_from_checkpoint", "true"]
    record = json.loads(out(place, "done/a-0.1.json").read_text())
    assert record["seconds"] > 0 and record["argv"] == first


def test_a_step_that_ended_while_its_runner_was_killed_is_run_again(place):
    tables(place, {"a": system("merge --out {at}/model", "{at}/model/config.json")})
    assert reproduced(place) == 0
    noted = out(place, "done/a-0.1.json")
    record = json.loads(noted.read_text())
    noted.write_text(json.dumps({key: value for key, value in record.items() if key != "seconds"}))
    out(place, "systems/a-0/model/run.json").write_text("{}")
    assert reproduced(place) == 0
    merges = [row["words"] for row in journal(place) if row["words"][0] == "merge"]
    assert len(merges) == 2 and merges[0] == merges[1]
    assert not out(place, "systems/a-0/model/run.json").exists()  # merge wants an empty folder


def begun(place, *words):
    """The same in a process of its own, whose output goes to a file."""

    def go():
        sys.stdout = sys.stderr = (place / "printed").open("w")
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


def test_killed_in_the_middle_it_goes_on_and_never_runs_a_step_twice_at_once(place, capsys):
    train = system("train sft --sleep 3 --output_dir {at}/run", "{at}/run/weights")
    tables(place, {"a": train, "b": system()})
    runner = begun(place)
    wait_for(lambda: journal(place))
    time.sleep(0.2)
    runner.kill()
    runner.join()
    # The step lives on and holds the lock: another run is refused until its end, then goes on.
    assert reproduced(place) == 2
    assert "another process is at work there" in capsys.readouterr().err
    wait_for(lambda: out(place, "systems/a-0/run/weights").exists())
    wait_for(lambda: reproduced(place) == 0)
    trained = [row["words"] for row in journal(place) if row["words"][0] == "train"]
    assert len(trained) == 2 and trained[1][-2:] == ["--resume_from_checkpoint", "true"]
    assert out(place, "x/table.md").is_file()


def test_stopped_it_stops_its_steps_and_names_the_way_to_go_on(place):
    tables(place, {"a": system("join --sleep 60 --out {at}/model")})
    runner = begun(place)
    wait_for(lambda: journal(place))
    runner.terminate()
    runner.join(timeout=30)
    assert runner.exitcode == 130 and "goes on from there" in (place / "printed").read_text()
    tables(place, {"a": system("join --out {at}/model")})
    assert reproduced(place, "--redo") == 0  # nobody holds the lock


def test_the_table_names_missing_seeds_and_claims(place):
    tables(
        place,
        {"a": system(), "b": system(seeds=[0]), "c": system()},
        seeds=[0, 1],
        claims=[{"better": "b", "worse": "a", "by": ["emotion_uar"], "margin": {"emotion_uar": 0.05}}],
    )
    assert reproduced(place, "--systems", "a", "b", "--seeds", "0") == 0
    assert reproduced(place, "--systems", "b") == 0
    text = out(place, "x/table.md").read_text()
    assert "b (seed 0 only)" in text and "c (not run)" in text and "a (seed 1 missing)" in text
    assert (
        "test: b not worse by 0.05 than a on Emotion UAR: not shown (+0.000 [0.000, 0.000], "
        "no claim (4 speakers), 1/1 seeds)" in text
    )
    content = json.loads(out(place, "x/table.json").read_text())
    (source,) = (s for path, s in content["sources"].items() if path.endswith("test/a-0.jsonl"))
    assert len(source["sha256"]) == 64 and source["argv"][0] == "caption" and source["seconds"] > 0
    assert content["Claims"] == [line[2:] for line in text.splitlines() if line.startswith("- test: b")]
    csv = out(place, "x/table.csv").read_text()
    assert csv.count("\n") == 1 + 3 * 2 and csv.startswith("system,label,seeds,note,metric,value,low,high")


def test_of_folds_each_is_a_run_of_its_own_and_all_clips_are_scored_at_once(place):
    (place / "run/data/test.jsonl").rename(place / "run/clued.jsonl")
    tables(place, {"a": system("join --llm {run}/teacher --data {train} --out {at}/model")}, folds=4)
    assert reproduced(place, "--systems", "a", "--dry_run") == 0 and not journal(place)
    assert reproduced(place) == 0
    words = [row["words"] for row in journal(place)]
    assert [w[0] for w in words] == ["split", "train", "join", "caption"] * 4
    fold = place / "run/folds/2"
    assert words[9][words[9].index("--output_dir") + 1] == f"{fold}/teacher"
    assert words[10][1:5] == ["--llm", f"{fold}/teacher", "--data", f"{fold}/data/train.jsonl"]
    assert "## test (8 clips, 4 speakers" in out(place, "x/table.md").read_text()
    (fold / "tables/captions/test/a-0.jsonl").unlink()
    assert reproduced(place, "--no_run") == 0 and len(journal(place)) == 16
    tables(place, {"a": system(), "b": system()}, folds=4)
    assert reproduced(place, "--redo", "--systems", "b") == 0
    assert "a, seed 0: 3 of 4 folds, not in the table" in out(place, "x/table.md").read_text()


def test_a_system_of_one_test_set_has_no_row_on_others(place):
    (place / "run/data/other.jsonl").write_text((place / "run/data/test.jsonl").read_text())
    tables(place, {"a": system(), "b": system(tests=["other"])}, tests=["test", "other"])
    assert reproduced(place) == 0
    first, second = out(place, "x/table.md").read_text().split("## other")
    assert "| b |" not in first and "| b |" in second
    assert not out(place, "captions/test/b-0.jsonl").exists()


def test_the_linear_probe_is_a_row_of_every_block_and_never_bold(place):
    tables(place, {"a": system()}, probe=True, subsets={"test": {"two": ["angry", "sad"]}})
    assert reproduced(place) == 0
    text = out(place, "x/table.md").read_text()
    assert text.count("| linear probe, layer 3 | 0.400 | – |") == 2  # best and last layer, "test"
    assert text.count("| linear probe, layer 3 | 0.800 | – |") == 2  # "test-two"
    words = journal(place)[0]["words"]
    assert words[0] == "probe" and str(out(place, "probe/test-two.jsonl")) in words
    assert "## test, two: angry, sad (4 clips, 2 speakers" in text
    assert reproduced(place) == 0 and len(journal(place)) == 3


def test_a_test_set_that_training_has_heard_is_refused(place, monkeypatch, capsys):
    tables(place, {"a": system()}, unheard=["test"])

    def refuse(provenance, manifests):
        raise reproduce.UserError(f"{manifests[0]}: was heard in training")

    monkeypatch.setattr(reproduce, "refuse_overlap", refuse)
    monkeypatch.setattr(reproduce, "known_provenance", lambda models: models)
    assert reproduced(place) == 2
    assert "was heard in training" in capsys.readouterr().err


@pytest.mark.parametrize(
    "table, row, message",
    [
        ({"metrics": ["emotion_uarr"]}, {}, "metric emotion_uarr"),
        ({"metrics": ["distinct_1"]}, {}, "no sum over clips"),
        ({"against": "z"}, {}, "z: no system of this table"),
        ({"claims": [{"better": "a", "worse": "y", "by": ["bleu_1"]}]}, {}, "y: no system of this table"),
        ({"claims": [{"better": "a", "worse": "a"}]}, {}, "claims.0.by: Field required"),
        (
            {"claims": [{"better": "a", "worse": "a", "by": ["bleu_1"], "margin": {"bleu_2": 0.1}}]},
            {},
            "margin of bleu_2: not in by",
        ),
        ({"titel": "x"}, {}, "titel: Extra inputs are not permitted"),
        ({"seeds": "all"}, {}, "seeds: Input should be a valid list"),
        ({"tests": ["nemo"]}, {}, "nemo.jsonl: no such manifest"),
        ({}, {"stepz": []}, "stepz: Extra inputs"),
        ({}, {"needs": ["q"]}, "q: no such system"),
        ({}, {"like": "q"}, "q: no such system"),
        ({}, {"needs": ["a"]}, "systems need each other: a → a"),
        ({}, {"model": "{there}"}, "unknown placeholder"),
        ({}, {"more": ["--x", "1"]}, "no training to add to"),
    ],
)
def test_mistakes_in_a_table_are_named(place, capsys, table, row, message):
    tables(place, {"a": system() | row}, **table)
    assert reproduced(place) == 2
    assert message in capsys.readouterr().err
    assert not journal(place)


def test_every_table_of_the_project_can_be_planned_and_its_commands_parse(tmp_path, monkeypatch):
    from aligncap.cli import COMMANDS
    from aligncap.utils.options import read_config

    folder = ROOT / "configs/tables"
    systems = reproduce.read_systems(folder / "systems.yaml")
    shown, seen = set(), set()
    for path in folder.glob("*.yaml"):
        if path.stem == "systems":
            continue
        assert f"reproduce.py table-{path.stem} " in path.read_text()
        spec = reproduce.read_table(f"table-{path.stem}", systems)
        run = Path("runs/r")
        plan = reproduce.make_plan(systems, list(spec.labels), spec, run)
        shown |= set(spec.labels)
        for step in plan.values():
            assert step.makes.is_relative_to(run / ("folds" if spec.folds else "tables")), step.name
            assert all("{" not in word for word in step.argv), step.name
            words = 2 if " ".join(step.argv[:2]) in COMMANDS else 1
            command = COMMANDS[" ".join(step.argv[:words])]
            module = __import__(f"aligncap.{command.module}", fromlist=[command.kind])
            known = {
                f
                for base in getattr(module, command.kind).__mro__
                for f in vars(base).get("__annotations__", {})
            }
            flags = {word[2:] for word in step.argv if word.startswith("--")} - {"config"}
            assert flags <= known, (step.name, flags - known)
            for before, word in zip(step.argv, step.argv[1:]):
                if before == "--config" and word not in seen:
                    assert set(read_config(word)) <= known, word
                    seen.add(word)
    assert shown == {name for name, row in systems.items() if row.model}


def test_ablations_put_their_flag_last():
    systems = reproduce.read_systems(ROOT / "configs/tables/systems.yaml")
    assert systems["t2"].commands()[0].run[-2:] == ["--temperature", "2"]
    assert systems["distill-no-p-act"].needs == ["teacher-no-p-act"]
    assert systems["distill"].commands()[0].run[-2:] == ["--output_dir", "{at}/run"]
    gpt2 = systems["llm-opt-1.3b"]
    assert gpt2.values["llm"] == "facebook/opt-1.3b" and len(gpt2.commands()) == 7
