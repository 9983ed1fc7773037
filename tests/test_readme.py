"""The README's commands are ones that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from aligncap import cli, options
from aligncap.training import config as arguments
from aligncap.training.verbs import ARGUMENTS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def test_the_two_commands_stand_there():
    assert any(c.startswith("bash scripts/quickstart.sh") for c in COMMANDS)
    assert any(c.startswith("bash scripts/test.sh") for c in COMMANDS)
    assert "bash scripts/test.sh" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, monkeypatch, manifest):
    words = shlex.split(command, comments=True)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        if words[1] == "scripts/reproduce.py":
            assert (ROOT / f"configs/tables/{words[2].removeprefix('table-')}.yaml").is_file()
        return
    if words[0] == "accelerate":
        assert words[1] == "launch" and (ROOT / words[words.index("--config_file") + 1]).is_file()
        if "-m" in words:
            words = words[words.index("-m") + 1 :]
        else:
            words = ["aligncap", "train", *words[words.index("scripts/train.py") + 1 :]]
    assert words[0] == "aligncap", command
    if words[1] == "train":
        there = ["--train_manifest", str(manifest)]
        if words[2] == "prefer":
            there += ["--dev_manifest", str(manifest), "--train_pairs", str(manifest), "--model", str(ROOT)]
        found = arguments.parse(ARGUMENTS[words[2]], [*words[3:], *there])
        assert found.output_dir
    else:
        assert options.parser().parse_args(words[1:]).verb in cli.VERBS


def test_every_file_that_the_readme_links_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in():
    assert "{{" not in TEXT
