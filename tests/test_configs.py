"""Every config file is what the code takes."""

import importlib
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligncap.cli import COMMANDS
from aligncap.utils.options import parse

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "configs/recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
PATHS = {"llm", "model", "start", "train_manifest", "dev_manifest", "train_pairs", "output_dir"}
PATHS |= {"manifest", "dev", "test", "out"}  # of the senses


def command_of(path: Path) -> str:
    """What a recipe is for, such as "train sft": its head names it."""
    found = re.search(rf"aligncap ((?:train|senses) \w+) --config {name_of(path)}\n", path.read_text())
    assert found, f"{path}: its head does not give the command"
    return found[1]


def config_of(path: Path) -> type[Any]:
    command = COMMANDS[command_of(path)]
    return getattr(importlib.import_module(f"aligncap.{command.module}"), command.kind)


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_hold_known_options_and_their_command(path, manifest, tmp_path):
    trains = command_of(path).startswith("train ")
    there = {"train_manifest": manifest, "output_dir": tmp_path} if trains else {}
    if "start" in yaml.safe_load(path.read_text()):
        there |= {"start": tmp_path}
    if command_of(path) == "train dpo":
        there |= {"model": tmp_path, "train_pairs": manifest, "dev_manifest": manifest}
    words = [word for key, value in there.items() for word in (f"--{key}", str(value))]
    for name in (name_of(path), str(path)):  # as packaged, and as a file
        parsed = parse(config_of(path), ["--config", name, *words])
        for key, value in yaml.safe_load(path.read_text()).items():
            if key not in there:
                assert str(getattr(parsed, key)) == str(value), key


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_repeat_no_default(path):
    """The defaults are the measured recipe; a recipe names paths, and what differs."""
    defaults = {f.name: f.default for f in fields(config_of(path))}
    for key, value in yaml.safe_load(path.read_text()).items():
        assert key in PATHS or value != defaults[key], key


def test_the_defaults_are_the_measured_recipe():
    """What the recipes named before they were left to the defaults."""
    student = {"encoder": "whisper-base", "encoder_layer": "mix", "pool_size": 16, "align_steps": 400}
    trained = {"max_steps": 150, "learning_rate": 1e-3, "projector_learning_rate": 3e-4}
    kl = {"divergence": "forward_kl", "temperature": 1.0, "ce_weight": 1.0}
    dpo = {"max_steps": 80, "learning_rate": 3e-4, "projector_learning_rate": 5e-5, "beta": 0.1}
    dpo |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "eval_steps": 40, "dev_clips": 120}
    measured = {
        "teacher": {"llm": "smollm2-135m-instruct", "max_steps": 150, "learning_rate": 5e-4},
        "sft": student | trained,
        "distill": student | trained | kl,
        "dpo": dpo,
    }
    for name, options in measured.items():
        kind = config_of(FOLDER / f"{name}.yaml")
        own = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(kind)}
        for key, value in (options | {"per_device_train_batch_size": 8, "cache_dir": "runs/cache"}).items():
            assert own.get(key, value) == value, f"{name}: {key}"


LAUNCHES = {path.name: path for path in sorted((ROOT / "configs/accelerate").glob("*.yaml"))}
MACHINES = ("cpu1", "cpu2", "gpu1", "gpu8", "fsdp2", "zero2", "zero3", "multihost")


def launched_by(path: Path, *flags: str) -> tuple[Any, dict[str, str]]:
    """What `accelerate launch` makes of a configuration: its arguments and the processes' environment."""
    from accelerate.commands import launch
    from accelerate.utils import launch as commands

    words = ["--config_file", str(path), *flags, "scripts/train.py", "distill"]
    args, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return args, commands.prepare_deepspeed_cmd_env(args)[1]
    if args.multi_gpu or args.use_fsdp:
        return args, commands.prepare_multi_gpu_env(args)
    return args, commands.prepare_simple_launcher_cmd_env(args)[1]


def test_there_is_a_launch_configuration_for_each_kind_of_machine():
    assert {f"{name}.yaml" for name in MACHINES} == set(LAUNCHES)


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_launcher_takes_each_configuration_and_its_head_is_true(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = LAUNCHES[name]
    config = load_config_from_file(str(path))
    args, env = launched_by(path)
    words = path.read_text().split()
    assert f"configs/accelerate/{name}" == words[words.index("--config_file") + 1]
    assert "scripts/train.py" in words and words[words.index("--config") + 1] == "distill"
    assert (
        args.num_processes
        == config.num_processes
        == {"cpu1": 1, "cpu2": 2, "gpu1": 1}.get(path.stem, 16 if path.stem == "multihost" else 8)
    )
    # A test runs it, or its head says that nothing did.
    tested = "Run by a test" in path.read_text() or "A test runs this file" in path.read_text()
    assert tested != (path.stem not in ("cpu1", "cpu2", "fsdp2"))
    assert tested or "Not run here" in path.read_text()
    assert env["ACCELERATE_MIXED_PRECISION"] == "no"  # precision is an option of training
    assert ("ACCELERATE_USE_FSDP" in env) == (path.stem == "fsdp2")
    assert ("ACCELERATE_USE_DEEPSPEED" in env) == path.stem.startswith("zero")


def test_fsdp2_shards_after_each_layer_and_saves_whole_adapters(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for key, value in launched_by(LAUNCHES["fsdp2.yaml"])[1].items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading and plugin.transformer_cls_names_to_wrap is None


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_plugins_are_what_the_configurations_say(stage, monkeypatch):
    """As far as can be seen without DeepSpeed: accelerate's own plugin and the JSON that it makes."""
    from accelerate.utils import DeepSpeedPlugin

    for key, value in launched_by(LAUNCHES[f"zero{stage}.yaml"])[1].items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    made = plugin.deepspeed_config["zero_optimization"]
    assert made["stage"] == stage and made["offload_optimizer"]["device"] == "none"
    assert plugin.zero3_init_flag is False
    assert made["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)


def test_hosts_find_each_other_by_number_and_address():
    args, env = launched_by(
        LAUNCHES["multihost.yaml"], "--machine_rank", "1", "--main_process_ip", "10.0.0.1"
    )
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "8")
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29500")


def test_fsdp2_runs_over_hosts_by_flags():
    flags = {"num_machines": 2, "num_processes": 16, "machine_rank": 1, "main_process_ip": "10.0.0.1"}
    words = [w for k, v in flags.items() for w in (f"--{k}", str(v))]
    args, env = launched_by(
        LAUNCHES["fsdp2.yaml"], *words, "--main_process_port", "29500", "--rdzv_backend", "static"
    )
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "8")
    assert env["ACCELERATE_USE_FSDP"] == "true" and env["FSDP_VERSION"] == "2"


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
