"""The wheel: what it holds, and that it trains without the checkout."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network by the hatchling of the test extra."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (path,) = folder.glob("aligncap-*.whl")
    return path


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    """A folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("installed")
    words = ["install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return folder


def test_the_wheel_holds_recipes_and_run_time_data_and_no_gold_sets_or_notes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name.removeprefix("aligncap/") for name in archive.namelist() if name.startswith("aligncap/")
        }
    assert "py.typed" in names
    for folder, ending in (("recipes", "yaml"), ("accelerate", "yaml"), ("tables", "yaml")):
        wanted = {f"_configs/{folder}/{p.name}" for p in (ROOT / "configs" / folder).glob(f"*.{ending}")}
        assert wanted and wanted <= names
    data = {
        f"_data/{p.name}" for p in (ROOT / "data").iterdir() if p.suffix in (".yaml", ".j2", ".css", ".js")
    }
    assert data and data == {name for name in names if name.startswith("_data/")}
    assert not any("gold" in name or name.endswith((".md", ".jsonl", ".txt")) for name in names)
    source = {p.relative_to(ROOT / "aligncap").as_posix() for p in (ROOT / "aligncap").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == source


def test_the_version_has_one_place(wheel):
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "aligncap/__init__.py").read_text(), re.M)[1]
    assert wheel.name.startswith(f"aligncap-{version}-")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["requires-python"] == ">=3.11"


def test_installed_elsewhere_it_trains_from_a_packaged_recipe(target, tmp_path, parts, manifest):
    check = "import aligncap, sys; print(aligncap.__file__); from aligncap.cli import main; sys.exit(main())"
    words = [
        "--config",
        "distill",
        "--encoder",
        parts["encoder"],
        "--llm",
        parts["llm"],
        "--align_steps",
        "3",
    ]
    words += ["--train_manifest", str(manifest), "--max_steps", "2", "--report_to", "none"]
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    # -P: nothing is imported from the current folder. The checkout is on the editable install's path alone,
    # which comes after PYTHONPATH.
    command = [sys.executable, "-P", "-c", check, "train", "distill", *words, "--output_dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == str(target / "aligncap/__init__.py")
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and (tmp_path / "run/adapter_model.safetensors").is_file()


def test_a_recipe_that_does_not_exist_is_named_with_those_that_do(target, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-P", "-m", "aligncap", "train", "distill", "--config", "distil"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "the recipes are" in done.stderr and "distill" in done.stderr
    assert "Traceback" not in done.stderr
