"""The model card says what the records beside the weights say, and says so where they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from tiny import make_model, save_model

from aligncap.data.provenance import Provenance, write_provenance
from aligncap.models.checkpoints import save_whole
from aligncap.models.merge import merge
from aligncap.models.model_card import MARK, model_card, write_model_card

METRICS = {
    "system": "distill",
    "emotion_uar": {"value": 0.71875, "low": 0.65625, "high": 0.765625, "std": None, "runs": 1},
    "cider_d": {"value": 0.6358, "low": 0.6054, "high": 0.6823, "std": None, "runs": 1},
    "spice": {"value": None, "low": None, "high": None, "std": None, "runs": 1},
    "signature": {
        "clips": 240,
        "speakers": 4,
        "corpora": ["ravdess"],
        "languages": ["en"],
        "interval": "95 % percentile bootstrap over 4 speakers",
    },
    "listening": {"wrong": {}},
    "listening_verdict": ["It listens: emotion UAR is 0.719 on the right audio and falls to 0.133."],
}


def record(folder: Path, verb: str, config: dict[str, Any], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"verb": verb, "config": config, "versions": {"aligncap": "0.2.0", "torch": "2.13"}, **more}
    (folder / "run.json").write_text(json.dumps(content))


def full(tmp_path: Path) -> Path:
    """Records of a model distilled from a teacher."""
    teacher, folder = tmp_path / "teacher", tmp_path / "model"
    record(teacher, "train teacher", {"llm": "smollm2-135m-instruct"})
    record(folder, "train distill", {"encoder": "whisper-base", "llm": str(teacher)})
    speakers = {"ravdess/1", "ravdess/2", "nemo/a", "my|corpus/x"}
    heard = Provenance(
        corpora=frozenset({"ravdess", "nemo", "my|corpus"}),
        speakers=frozenset(speakers),
        clips=frozenset({"1" * 64, "2" * 64}),
        unknown=frozenset({"old.jsonl: it is gone"}),
    )
    write_provenance(folder, heard)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def test_a_full_record_is_told_in_full(tmp_path):
    text = model_card(full(tmp_path))
    for said in (
        "# model",
        "Made by train teacher, then train distill.",
        "| speech encoder | whisper-base: openai/whisper-base, CTranslate2 float16 (MIT) |",
        "| language model | smollm2-135m-instruct: HuggingFaceTB/SmolLM2-135M-Instruct, GGUF Q4_1",
        "| RAVDESS | en | 2 | CC BY-NC-SA 4.0 |",
        "| nEMO | pl | 1 | CC BY-NC-SA 4.0 |",
        "| my\\|corpus | not known | 1 | not known |",
        "2 clips in all",
        "- Not traced: old.jsonl: it is gone",
        "Clips: 240; speakers: 4; corpora: ravdess.",
        "Intervals: 95 % percentile bootstrap over 4 speakers.",
        "| emotion_uar | 0.719 | 0.656 to 0.766 |",
        "- It listens: emotion UAR is 0.719 on the right audio and falls to 0.133.",
        'Captioner.from_pretrained("path/to/this/folder")',
        "It is no evidence of what a person feels",
        "Made with aligncap 0.2.0, torch 2.13.",
    ):
        assert said in text, said
    assert "spice" not in text and str(tmp_path) not in text

    header = ModelCard(text).data
    assert header.language == ["en", "pl"] and header.license == "other"  # one corpus has none that is known
    assert header.base_model == ["openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert {(r.metric_type, r.metric_value) for r in header.eval_results} == {
        ("emotion_uar", 0.71875),
        ("cider_d", 0.6358),
    }


def test_corpora_of_one_licence_give_the_header_that_licence(tmp_path):
    write_provenance(tmp_path, Provenance(corpora=frozenset({"ravdess", "nemo"})))
    assert ModelCard(model_card(tmp_path)).data.license == "cc-by-nc-sa-4.0"


def test_without_records_the_card_says_that_nothing_is_known(tmp_path):
    text = model_card(tmp_path / "empty")
    assert text.count("Not known:") == 3 and "| language model | not known |" in text
    assert ModelCard(text).data.to_dict().keys() == {"library_name", "model_name", "pipeline_tag", "tags"}


def test_records_of_another_form_are_passed_over(tmp_path):
    for name in ("run.json", "metrics.json"):
        (tmp_path / name).write_text('["no object"]')
    assert model_card(tmp_path).count("Not known:") == 3
    (tmp_path / "run.json").write_text("{torn")
    assert model_card(tmp_path).count("Not known:") == 3


NASTY = 'a "b": {% raw %} {{ x }} <script> | `c`\n# d: [e] & \u200bü猫'


def test_names_with_special_characters_stay_text(tmp_path):
    record(tmp_path, NASTY, {"encoder": NASTY, "llm": NASTY})
    write_provenance(tmp_path, Provenance(corpora=frozenset({NASTY}), speakers=frozenset({f"{NASTY}/1"})))
    signature = METRICS["signature"] | {"corpora": [NASTY], "interval": NASTY}
    told = METRICS | {"signature": signature, "listening_verdict": [NASTY]}
    (tmp_path / "metrics.json").write_text(json.dumps(told))
    text = model_card(tmp_path, name=NASTY)
    header, body = text.split("\n---\n", 1)
    assert yaml.safe_load(header.removeprefix("---"))["model-index"][0]["name"] == NASTY
    assert "<script>" not in body and "\n# d" not in body and "{% raw %} {{ x }}" in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (3, 4, 5) for line in rows)


def test_a_saved_model_has_a_card_and_a_persons_own_is_kept(tmp_path):
    model, _ = make_model()
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m/README.md").read_text()
    assert MARK in text and "\n# m\n" in text
    write_model_card(full(tmp_path), tmp_path)
    save_whole(model, tmp_path / "model")
    assert "RAVDESS" in (tmp_path / "model/README.md").read_text()  # written anew, from the records there
    (tmp_path / "m/README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path / "m")
    save_whole(model, tmp_path / "m")
    assert (tmp_path / "m/README.md").read_text() == "# Mine\n"


def test_a_damaged_record_does_not_stop_a_save(tmp_path, caplog):
    model, _ = make_model()
    (tmp_path / "provenance.json").write_text("{torn")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and "no model card" in caplog.text


def test_a_merged_model_tells_of_its_run_wherever_it_is_taken(tmp_path):
    from peft import LoraConfig, get_peft_model

    model, processor = make_model()
    run = tmp_path / "run"
    processor.save_pretrained(run / "base")
    save_whole(model, run / "base")
    get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj")).save_pretrained(run)
    record(run, "train sft", {"encoder": "whisper-base", "llm": "smollm2-135m-instruct"}, data={})
    write_provenance(run, Provenance(corpora=frozenset({"ravdess"})))
    merge(run, tmp_path / "merged")
    (tmp_path / "merged").rename(tmp_path / "elsewhere")
    run.rename(tmp_path / "gone")
    for text in ((tmp_path / "elsewhere/README.md").read_text(), model_card(tmp_path / "elsewhere")):
        assert "Made by train sft, then merge." in text
        assert "| RAVDESS | en | 0 | CC BY-NC-SA 4.0 |" in text and "SmolLM2-135M-Instruct" in text
    assert MARK in (tmp_path / "gone/base/README.md").read_text()


def test_a_run_that_went_on_from_another_names_the_other_s_parts(tmp_path):
    record(tmp_path / "a", "train sft", {"encoder": "whisper-base", "llm": "qwen2.5-coder-0.5b-instruct"})
    later = {"encoder": "whisper-base", "llm": "smollm2-135m-instruct", "start": str(tmp_path / "a")}
    record(tmp_path / "b", "train distill", later)
    text = model_card(tmp_path / "b")
    assert "Made by train sft, then train distill." in text
    assert "Qwen2.5-Coder-0.5B" in text and "SmolLM2" not in text


@pytest.mark.parametrize("own", [False, True])
def test_push_to_hub_uploads_our_card_and_keeps_one_that_a_person_wrote_there(tmp_path, monkeypatch, own):
    from transformers import AutoModelForCausalLM
    from transformers.utils import hub

    folder = save_model(tmp_path / "model")
    write_provenance(folder, Provenance(corpora=frozenset({"ravdess"})))
    uploaded = {}

    class Api:
        def create_repo(self, repo_id, **_):
            return type("Repository", (), {"repo_id": repo_id})

    def card(*_, **__):
        if own:
            return ModelCard("---\nlicense: mit\n---\n# Mine")
        raise EntryNotFoundError("no card")

    def upload(self, working_dir, repo_id, *_, **__):
        uploaded.update({p.name: p for p in Path(working_dir).iterdir()})
        uploaded["text"] = (Path(working_dir) / "README.md").read_text()

    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr(hub.ModelCard, "load", card)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    AutoModelForCausalLM.from_pretrained(folder).push_to_hub("me/my-captioner")
    assert {"README.md", "model.safetensors", "config.json"} <= set(uploaded)
    if own:
        assert "# Mine" in uploaded["text"] and MARK not in uploaded["text"]
    else:
        assert "\n# my-captioner\n" in uploaded["text"] and "RAVDESS" in uploaded["text"]
