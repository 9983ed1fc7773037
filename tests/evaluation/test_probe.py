import json

import numpy as np
import pytest
import torch

from aligncap.data.manifest import read_manifest, rebase, write_manifest
from aligncap.evaluation import probe as module
from aligncap.evaluation.probe import ProbeConfig, fit_logistic, read_probe, run_probe
from aligncap.utils.errors import UserError
from aligncap.utils.statistics import recall_sums, uar


def test_a_separable_set_is_learnt():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.nn.functional.one_hot(labels, 3).float() * 4 + torch.randn(90, 3)
    predicted = fit_logistic(features.numpy(), labels.numpy(), 1e-3).predict(features.numpy())
    assert (predicted == labels.numpy()).mean() > 0.9


def test_the_penalty_shrinks_the_weights():
    torch.manual_seed(0)
    features, labels = torch.randn(60, 5).numpy(), np.arange(60) % 2
    sizes = [np.linalg.norm(fit_logistic(features, labels, p).coef_) for p in (1e-3, 1e-1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_uar_weighs_labels_alike():
    assert uar(recall_sums([0] * 9 + [1], [0] * 10, [0, 1]).sum(0)) == 0.5


@pytest.fixture
def config(tmp_path, manifest, parts) -> ProbeConfig:
    sets = [tmp_path / f"{name}.jsonl" for name in ("train", "dev", "test")]
    utterances = read_manifest(manifest)
    for path in sets:
        write_manifest(path, rebase(utterances, manifest, path))
    return ProbeConfig(
        train=str(sets[0]),
        dev=str(sets[1]),
        test=[str(sets[2])],
        encoder=parts["encoder"],
        cache_dir=str(tmp_path / "cache"),
        out=str(tmp_path / "probe.json"),
    )


def test_a_probe_reads_each_manifest_and_its_hashes_once_and_becomes_baselines(config, monkeypatch, capsys):
    asked, real = [], module.audio_files
    monkeypatch.setattr(module, "audio_files", lambda m, us: asked.append(m) or real(m, us))
    assert run_probe(config) == 0
    assert asked == [config.train, config.dev, *config.test] and not hasattr(module, "file_sha256")
    result = json.loads(open(config.out).read())
    assert result["labels"] == ["angry", "calm"]
    assert "best on dev" in capsys.readouterr().out
    baselines = read_probe(config.out, config.test[0])
    assert [b.name.rpartition(" ")[0] for b in baselines] == [
        "linear probe, layer",
        "linear probe, layer",
    ]
    assert baselines[1].values == {"emotion_uar": result["layers"][-1]["test"]}
    with pytest.raises(UserError, match="holds no score for 'dev'|--test"):
        read_probe(config.out, config.out)
    with pytest.raises(UserError, match="no output of `aligncap probe`"):
        read_probe(config.train, config.test[0])


def test_only_labels_of_the_test_set_compete():
    features = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    model = fit_logistic(features, np.array([0, 0, 1, 1, 2, 2]), 1e-3)
    assert module._score(model, np.array([[5.0], [9.0]]), np.array([0, 2])) == 1.0


def test_test_sets_need_names_of_their_own():
    with pytest.raises(UserError, match="names of their own"):
        ProbeConfig(train="a", dev="b", test=["x/test.jsonl", "y/test.jsonl"])
    with pytest.raises(UserError, match="names of their own"):
        ProbeConfig(train="a", dev="b", test=["dev.jsonl"])
