"""What tests share: real speech where it is, tiny parts and made clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SENTENCES, make_model, save_parts, voice

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

# Files of a quarter of a minute and more, the longest first: a worker takes whole files, and all wait for one
# that comes late.
LONGEST = (
    "test_net.py",
    "test_families.py",
    "test_launching.py",
    "test_kills.py",
    "test_resume.py",
    "test_batches.py",
    "test_registration.py",
    "test_openai_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def tones_are_speech() -> Iterator[None]:
    """The tones of `tiny.voice` stand for voices, which the gate before the model would not take them for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aligncap.audio.speech.has_speech", lambda samples: True)
        yield


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Folder of the real corpora; skips where they are absent."""
    folder = Path(
        os.environ.get("ALIGNCAP_CORPORA", Path(__file__).resolve().parents[2] / "shared" / "corpora")
    )
    if not (folder / "ravdess").is_dir():
        pytest.skip(f"real speech is not at hand: {folder}/ravdess; set ALIGNCAP_CORPORA")
    return folder


@pytest.fixture(scope="session")
def tiny():
    return make_model()


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny Whisper and a tiny LLM, as `--encoder` and `--llm` take them."""
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """Eight made clips of two speakers, with captions, clues and acoustic prompts."""
    import soundfile

    from aligncap.data.manifest import Utterance, write_manifest
    from aligncap.utils.io import file_sha256

    folder = tmp_path_factory.mktemp("speech")
    utterances = []
    for i in range(8):
        name = f"clip{i}.wav"
        soundfile.write(folder / name, voice(0.5 + 0.15 * i, 120 + 20 * i, seed=i), 16_000)
        angry = i % 2
        utterances.append(
            Utterance(
                id=f"clip{i}",
                root=".",
                audio=name,
                corpus="made",
                speaker=f"s{i // 4}",
                transcript="Kids are talking by the door",
                emotion="angry" if angry else "calm",
                sha256=file_sha256(folder / name),
                captions=[
                    "He sounds angry, with a loud voice." if angry else "She sounds calm and steady.",
                    SENTENCES[i % 3],
                ],
                clues=[["angry", "loud"] if angry else ["calm", "steady"], ["soft"]],
                p_act=["Voice: angry, loud." if angry else "Voice: calm, steady.", "Voice: soft."],
            )
        )
    write_manifest(folder / "train.jsonl", utterances)
    return folder / "train.jsonl"
