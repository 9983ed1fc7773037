"""Every config file is what the code takes."""

from pathlib import Path

import pytest
import yaml

from aligncap.training import arguments
from aligncap.training.verbs import ARGUMENTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_recipes_hold_known_options_and_their_command(path, manifest, tmp_path):
    verb = path.stem.split("-")[0]
    assert f"aligncap train {verb} --config configs/recipes/{path.name}" in path.read_text()
    there = {"train_manifest": manifest, "output_dir": tmp_path}
    if verb == "prefer":
        there |= {"model": tmp_path, "train_pairs": manifest, "dev_manifest": manifest}
    words = [word for key, value in there.items() for word in (f"--{key}", str(value))]
    parsed = arguments.parse(ARGUMENTS[verb], ["--config", str(path), *words])
    for key, value in yaml.safe_load(path.read_text()).items():
        if key not in (*there, "dev_manifest"):
            assert str(getattr(parsed, key)) == str(value), key


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda p: p.name)
def test_accelerate_configs_are_accepted(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text()


def test_the_project_pins_every_dependency_it_names():
    import tomllib

    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "configs/constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in group:
            name = requirement.split(">")[0].split("=")[0].split("[")[0].strip().lower().replace("_", "-")
            assert name in pinned or name in ("pip", "aligncap"), f"{name} is not in configs/constraints.txt"
