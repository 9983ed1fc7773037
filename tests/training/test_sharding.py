"""What a sharded run needs: see aligncap/training/sharding.py. Two processes run in test_launching.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny import make_model, with_adapters
from tiny_families import FAMILIES

from aligncap.models.build import assemble
from aligncap.training.adapters import freeze_adapters
from aligncap.training.distill import DistillConfig, wants_teacher_cache
from aligncap.training.dpo import wants_reference_cache
from aligncap.training.sft import SpeechSFTConfig
from aligncap.training.sharding import adapters_off, load_whole, place, shard_as_configured, shards_weights
from aligncap.utils.errors import UserErrors


def arguments(tmp_path, manifest, **more):
    return DistillConfig(output_dir=str(tmp_path), train_manifest=str(manifest), **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_every_family_are_units_of_their_own(name):
    """accelerate shards the classes that the model names, and stops at a class that is not there."""
    from tiny import make_whisper
    from transformers import WhisperFeatureExtractor

    torch.manual_seed(0)
    llm, tokenizer = FAMILIES[name].make()
    model, _ = assemble(
        make_whisper().encoder,
        WhisperFeatureExtractor(),
        llm,
        tokenizer,
        encoder_layer=2,
        projector_hidden=24,
    )
    kinds = {type(module).__name__: type(module) for module in model.modules()}
    layers = next(m for m in llm.modules() if isinstance(m, torch.nn.ModuleList))
    adapted = with_adapters(model, SpeechSFTConfig(output_dir="x", train_manifest=__file__), projector=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(adapted)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {type(layers[0]), kinds["WhisperEncoderLayer"]} <= wrapped


def test_caches_that_need_whole_weights_are_not_made(tmp_path, manifest, monkeypatch):
    args = arguments(tmp_path, manifest, teacher_cache="yes")
    prefer = SimpleNamespace(
        ld_alpha=None, reference_cache="auto", max_steps=1000, train_batch_size=8,
        gradient_accumulation_steps=1, world_size=1, fsdp=None, deepspeed_plugin=None,
    )  # fmt: skip
    assert (
        not shards_weights(args) and wants_teacher_cache(args, range(8)) and wants_reference_cache(prefer, 8)
    )
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    assert not shards_weights(args)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    assert shards_weights(args) and not wants_teacher_cache(args, range(8))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shards_weights(prefer) and not wants_reference_cache(prefer, 8)


def test_one_device_need_not_hold_the_language_model():
    meta = torch.device("meta")
    model, _ = make_model()
    assert place(model, meta, sharded=True).device.type == "meta"  # where speech is encoded
    assert {p.device.type for p in model.model.multi_modal_projector.parameters()} == {"meta"}
    assert {p.device.type for p in model.model.language_model.parameters()} == {"cpu"}
    assert {p.device.type for p in place(model, meta, sharded=False).parameters()} == {"meta"}


@pytest.mark.parametrize("frozen", [False, True])
def test_switching_adapters_off_leaves_what_is_trained(tmp_path, manifest, frozen):
    model = with_adapters(
        make_model()[0].requires_grad_(False), arguments(tmp_path, manifest), projector=True
    )
    if frozen:
        freeze_adapters(model)

    def trained():
        return {name for name, p in model.named_parameters() if p.requires_grad}

    before = trained()
    assert any("multi_modal_projector" in name for name in before)
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    with adapters_off(model):
        assert trained() == before and layer.disable_adapters
    assert trained() == before and not layer.disable_adapters


def test_zero_3_loads_whole_models_and_shards_them_after():
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    set_hf_deepspeed_config(config)
    plugin = SimpleNamespace(hf_ds_config=config)
    load_whole(SimpleNamespace(deepspeed_plugin=plugin))
    assert not is_deepspeed_zero3_enabled()
    shard_as_configured(
        SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
    )
    assert is_deepspeed_zero3_enabled()
    load_whole(SimpleNamespace(deepspeed_plugin=plugin))


def test_fsdp2_rounds_no_sums():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    state = SimpleNamespace(fsdp_plugin=plugin)
    shard_as_configured(SimpleNamespace(accelerator=SimpleNamespace(state=state)))
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert policy.reduce_dtype == torch.float32 and policy.output_dtype is None


def test_deepspeed_that_is_not_there_is_named_with_its_extra(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr("aligncap.training.sharding.is_deepspeed_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserErrors, match=r"aligncap\[deepspeed\]"):
        arguments(tmp_path, manifest)


def test_fsdp_of_the_first_kind_is_refused(tmp_path, manifest, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserErrors, match="fsdp2.yaml"):
        arguments(tmp_path, manifest)


def test_the_command_that_goes_on_shards_as_before(monkeypatch):
    from aligncap.training.resume import resume_command

    monkeypatch.setattr("sys.argv", ["scripts/train.py", "distill", "--seed", "1"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command().startswith(
        "accelerate launch --multi_gpu --num_processes 2 scripts/train.py distill"
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "--config_file configs/accelerate/fsdp2.yaml --num_processes 2" in resume_command()
