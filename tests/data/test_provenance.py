"""What a model was trained on: kept, traced, and refused in a zero-shot test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligncap.data.manifest import Utterance, audio_path, read_manifest, write_manifest
from aligncap.data.provenance import (
    Provenance,
    checkpoint_provenance,
    known_provenance,
    manifests_provenance,
    merge_provenance,
    read_provenance,
    refuse_overlap,
    training_provenance,
    write_provenance,
)
from aligncap.data.split import join_manifests
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import file_sha256

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def clip(
    name: str, corpus: str, speaker: str | None, sha256: str | None, samples: str | None = None
) -> Utterance:
    extra = {"samples_sha256": samples} if samples else {}
    return Utterance(name, ".", f"{name}.wav", corpus, speaker=speaker, sha256=sha256, extra=extra)


def written(path: Path, *utterances: Utterance) -> Path:
    write_manifest(path, utterances)
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return written(
        tmp_path / "data" / "train.jsonl",
        clip("a", "sea", "sea-1", ONE, "first"),
        clip("b", "sea", "sea-2", TWO),
        clip("c", "sea", None, None),
    )


def run_record(folder: Path, verb: str, config: dict, data: list[Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"verb": verb, "config": config, "data": {str(p): file_sha256(p) for p in data}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_corpora_speakers_and_hashes_of_a_manifest_are_what_was_trained_on(train: Path) -> None:
    found = manifests_provenance([train])
    assert found.corpora == {"sea"} and found.speakers == {"sea/sea-1", "sea/sea-2"}
    assert found.clips == {ONE, TWO} and found.samples == {"first"}
    assert found.unhashed == {"sea"}  # clip c has no hash
    assert found.manifests == {f"{file_sha256(train)} {train.resolve()}"}


def test_a_run_that_went_on_from_another_stands_on_it_and_not_on_the_default_llm(
    train: Path, tmp_path: Path
) -> None:
    first = run_record(tmp_path / "first", "train sft", {"llm": "smollm2-135m-instruct"}, [train])
    later = written(tmp_path / "later.jsonl", clip("d", "lake", "lake-1", "3" * 64))
    config = {"llm": "smollm2-135m-instruct", "start": str(first)}
    found = checkpoint_provenance(run_record(tmp_path / "second", "train distill", config, [later]))
    assert found.corpora == {"sea", "lake"} and not found.unknown


def test_what_is_written_is_read_back_and_writing_twice_gives_the_same_bytes(
    train: Path, tmp_path: Path
) -> None:
    found = merge_provenance(
        manifests_provenance([train]), Provenance(corpora=frozenset({"land"}), unknown=frozenset({"who?"}))
    )
    write_provenance(tmp_path / "run", found)
    first = (tmp_path / "run" / "provenance.json").read_bytes()
    assert read_provenance(tmp_path / "run") == found and found.corpora == {"sea", "land"}
    write_provenance(tmp_path / "run", found)
    assert (tmp_path / "run" / "provenance.json").read_bytes() == first
    assert read_provenance(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", "{", '{"corpora": "sea"}'])
def test_a_broken_record_is_named_and_never_taken_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=r"provenance\.json: no record"):
        read_provenance(tmp_path)


def test_the_record_of_an_older_checkpoint_is_read_under_its_former_name(train: Path, tmp_path: Path) -> None:
    write_provenance(tmp_path / "run", manifests_provenance([train]))
    (tmp_path / "run" / "provenance.json").rename(tmp_path / "run" / "heard.json")
    assert read_provenance(tmp_path / "run") == manifests_provenance([train])


def test_manifests_that_were_read_are_not_read_again(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, known = manifests_provenance([train]), {train: read_manifest(train)}
    monkeypatch.setattr("aligncap.data.provenance.open_manifest", None)
    assert manifests_provenance(known) == plain == training_provenance(known, [])
    with pytest.raises(UserErrors, match='corpus "sea"'):
        refuse_overlap(plain, known)


def test_base_and_checkpoints_share_their_runs_provenance(train: Path, tmp_path: Path) -> None:
    write_provenance(tmp_path / "run", manifests_provenance([train]))
    for part in ("base", "checkpoint-50"):
        (tmp_path / "run" / part).mkdir()
        assert checkpoint_provenance(tmp_path / "run" / part).corpora == {"sea"}


def test_older_checkpoints_are_traced_through_merges_and_starts(train: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "data" / "land.jsonl", clip("x", "land", "land-1", THREE))
    run_record(tmp_path / "teacher", "train teacher", {"llm": "smollm2-135m-instruct"}, [other])
    run = run_record(tmp_path / "distill", "train distill", {"llm": str(tmp_path / "teacher")}, [train])
    (run / "adapter_model.safetensors").write_bytes(b"weights")
    merged = run_record(
        tmp_path / "model", "merge", {"checkpoint": str(run)}, [run / "adapter_model.safetensors"]
    )
    found = checkpoint_provenance(merged)
    assert found.corpora == {"sea", "land"} and found.clips == {ONE, TWO, THREE} and not found.unknown
    # the pairs are no manifest, the manifest beside them is
    (tmp_path / "pairs.jsonl").write_text('{"id": "a"}\n')
    config = {"model": str(merged), "train_pairs": str(tmp_path / "pairs.jsonl")}
    run_record(tmp_path / "prefer", "train prefer", config, [tmp_path / "pairs.jsonl", train])
    assert checkpoint_provenance(tmp_path / "prefer").corpora == {"sea", "land"}
    (run / "adapter_model.safetensors").write_bytes(b"others")
    assert any("has changed since" in reason for reason in checkpoint_provenance(merged).unknown)


def test_a_relative_path_of_a_run_is_found_above_the_checkpoint(train: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "distill"
    folder.mkdir(parents=True)
    record = {"verb": "train sft", "config": {}, "data": {"data/train.jsonl": file_sha256(train)}}
    (folder / "run.json").write_text(json.dumps(record))
    assert checkpoint_provenance(folder).corpora == {"sea"}


def test_what_cannot_be_traced_is_refused_unless_the_user_names_the_training(
    train: Path, tmp_path: Path
) -> None:
    changed = written(tmp_path / "changed.jsonl", clip("x", "land", "land-1", THREE))
    config = {"llm": str(tmp_path / "gone")}
    run = run_record(tmp_path / "run", "train sft", config, [train, changed])
    changed.write_text(changed.read_text() + "\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UserErrors) as caught:
        known_provenance([run, bare])
    message = str(caught.value)
    assert len(caught.value.errors) == 3 and message.count("--trained_on") == 3
    assert (
        "changed.jsonl: has changed" in message
        and "gone: " in message
        and "neither provenance.json" in message
    )
    found = known_provenance([run, bare], [changed])
    assert found.corpora == {"sea", "land"} and not found.unknown  # what is known stays known


def test_a_pretrained_language_model_counts_as_trained_on_nothing(train: Path, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text('{"model_type": "llama"}')
    assert training_provenance(
        [train], ["smollm2-135m-instruct", None, tmp_path / "llm"]
    ) == manifests_provenance([train])
    (tmp_path / "llm" / "config.json").write_text('{"model_type": "aligncap"}')
    assert training_provenance([train], [tmp_path / "llm"]).unknown


def test_whatever_is_shared_is_refused_in_one_message(train: Path, tmp_path: Path) -> None:
    same_corpus = written(tmp_path / "same.jsonl", clip("n", "Sea", "sea-9", THREE))
    disguised = written(
        tmp_path / "disguised.jsonl",
        clip("same-bytes", "lake", "lake-1", TWO),
        clip("same-samples", "lake", "lake-2", THREE, "first"),
        clip("same-speaker-1", "lake", "sea-1", THREE),
        clip("same-speaker-2", "lake", "sea-1", THREE),
    )
    with pytest.raises(UserErrors) as caught:
        refuse_overlap(manifests_provenance([train]), [same_corpus, disguised])
    corpus, speakers, clips = caught.value.errors
    assert "same.jsonl" in corpus and '"Sea" (1 clips)' in corpus
    assert "disguised.jsonl" in speakers and "1 speaker was trained on: sea-1 (2 clips)" in speakers
    assert "2 clips were trained on: same-bytes (same file), same-samples (same samples)" in clips


def test_speakers_are_counted_and_long_lists_cut(tmp_path: Path) -> None:
    utterances = [clip(f"c{i}", "sea", f"sea-{i % 8}", None) for i in range(16)]
    path = written(tmp_path / "m.jsonl", *utterances)
    with pytest.raises(
        UserErrors,
        match=r"8 speakers were trained on: sea-0 \(2 clips\), .*sea-4 \(2 clips\) and 3 more; leave",
    ):
        refuse_overlap(manifests_provenance([path]), [path])


def test_a_corpus_of_strangers_passes_though_speakers_bear_like_numbers(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", clip("a", "sea", "1", ONE))
    test = written(tmp_path / "test.jsonl", clip("a", "lake", "1", TWO), clip("b", "lake", None, None))
    refuse_overlap(manifests_provenance([train]), [test])


def test_joined_manifests_keep_order_and_audio_and_refuse_an_id_used_twice(tmp_path: Path) -> None:
    one = written(tmp_path / "one" / "m.jsonl", clip("a", "sea", "1", ONE))
    two = written(tmp_path / "two" / "m.jsonl", clip("b", "lake", "1", TWO))
    out = tmp_path / "all" / "train.jsonl"
    join_manifests([two, one], out)
    joined = read_manifest(out)
    assert [u.id for u in joined] == ["b", "a"]
    assert [audio_path(out, u) for u in joined] == [tmp_path / "two" / "b.wav", tmp_path / "one" / "a.wav"]
    written(two, clip("a", "lake", "1", TWO))
    with pytest.raises(UserErrors, match=r'id "a" is used in .*one.m\.jsonl too'):
        join_manifests([one, two], out)
