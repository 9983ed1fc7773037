"""The commands of the README and of docs/ are ones that the program takes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from aligncap.cli import COMMANDS
from aligncap.utils import options

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DIARY = "log.md"  # its commands are those of its days
STARTS = ("aligncap ", "bash scripts/", "python ", "accelerate launch ")


def commands_of(text: str) -> list[str]:
    """Command lines of the ```bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_both_commands_are_there_and_ci_calls_the_second():
    assert any(c.startswith("bash scripts/quickstart.sh") for c in commands_of(README))
    assert any(c.startswith("bash scripts/test.sh") for c in commands_of(README))
    assert "bash scripts/test.sh" in (ROOT / ".ci/run").read_text()


def option_names(name: str) -> tuple[type, set[str]]:
    """The configuration of a command, and the names of its options."""
    command = COMMANDS[name]
    kind = getattr(importlib.import_module(f"aligncap.{command.module}"), command.kind)
    return kind, {f.name for f in options.fields(kind) if f.init} | {"config", "help"}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, id=f"{page.name}-{line[:60]}")
        for page in PAGES
        if page.name != DIARY
        for line in commands_of(page.read_text(encoding="utf-8"))
        if page.name == "README.md" or line.startswith(STARTS)
    ],
)
def test_commands_that_the_pages_show_are_taken(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    if words[0] in ("bash", "python"):
        assert (ROOT / words[1]).is_file()
        if words[1] == "scripts/reproduce.py":
            assert (ROOT / f"configs/tables/{words[2].removeprefix('table-')}.yaml").is_file()
        return
    if words[0] == "accelerate":
        assert words[1] == "launch" and (ROOT / words[words.index("--config_file") + 1]).is_file()
        start = words.index("-m") + 1 if "-m" in words else words.index("scripts/train.py")
        words = words[start:] if "-m" in words else ["aligncap", "train", *words[start + 1 :]]
    assert words[0] == "aligncap", command
    name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
    kind, known = option_names(name)
    rest = words[1 + len(name.split()) :]
    given = {word[2:].partition("=")[0].replace("-", "_") for word in rest if word.startswith("--")}
    assert given <= known, given - known
    for before, word in zip(rest, rest[1:]):
        if before == "--config":
            assert set(options.read_config(word)) <= known
    leading = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    assert not leading or kind.POSITIONAL, command
    if not name.startswith("train"):  # whose files and folders must exist
        assert options.parse(kind, rest)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_files_that_are_linked_or_run_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    if path.name != DIARY:
        for script in re.findall(r"\bscripts/[\w/]+\.(?:py|sh)", text):
            assert (ROOT / script).is_file(), script
        for name in re.findall(r"`aligncap (?:train |lab |models )?[a-z]+", text):
            words = name.removeprefix("`aligncap ").split()
            groups = {key.split()[0] for key in COMMANDS}
            assert " ".join(words) in COMMANDS or (len(words) == 1 and words[0] in groups), name


def test_nothing_is_left_to_fill_in():
    assert "{{" not in README
