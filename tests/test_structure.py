"""The structure that docs/architecture.md describes: imports run downwards, and sizes stay within bounds."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top: a folder may import what stands in a later row.
FLOORS = (
    ("cli",),
    ("training", "preferences", "evaluation", "lab", "serve"),
    ("senses", "inference"),  # the talking app of `serve` is made of both
    ("models",),
    ("text", "data"),
    ("audio",),
    ("utils",),
)
BESIDE = {("text", "data"), ("data", "text")}  # captions are part of a manifest, and are written from it
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "aligncap").rglob("*.py")
}


def imports_of(module: str) -> set[str]:
    """Modules of the package that `module` imports anywhere, also inside functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in FILES:
                name = name.rpartition(".")[0]
            if name not in ("", "aligncap", module):
                found.add(name)
    return found


GRAPH = {module: imports_of(module) for module in FILES}


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_imports_run_downwards_and_no_stage_imports_another():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = []
    for module, targets in GRAPH.items():
        for target in targets:
            a, b = room(module), room(target)
            if a in floor and b in floor and a != b and floor[b] <= floor[a] and (a, b) not in BESIDE:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_its_place():
    folders = {p.name for p in (ROOT / "aligncap").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders <= {name for names in FLOORS for name in names}


def test_no_files_import_each_other_in_a_circle():
    seen: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in seen:
            return
        for target in GRAPH[module]:
            visit(target, (*path, module))
        seen[module] = 1

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize(
    "pattern",
    [r"trust_remote_code\s*=\s*True", r"yaml\.load\(", r"shell\s*=\s*True", r"pickle\.loads?\("],
)
def test_nothing_unsafe_is_called(pattern):
    for path in [*FILES.values(), *(ROOT / "scripts").rglob("*.py")]:
        assert not re.search(pattern, path.read_text(encoding="utf-8")), path


def test_one_command_alone_reads_a_pickle_of_weights_and_only_tensors_of_it():
    calls = {
        path.name: re.findall(r"torch\.load\([^)]*\)", path.read_text(encoding="utf-8"))
        for path in [*FILES.values(), *(ROOT / "scripts").rglob("*.py")]
    }
    found = {name: lines for name, lines in calls.items() if lines}
    assert found == {"funasr.py": ['torch.load(path, map_location="cpu", weights_only=True)']}


def test_sizes_stay_within_their_bounds():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sizes.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
