"""The nine stimuli of a conflict study, spoken by the synthesiser where no recordings are at hand.

One neutral sentence in two languages, in nine manners (data/conflict.yaml). It is formant synthesis: what a
model makes of it says little about people's voices.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.data.synthetic.plan import clip_of, voices
from aligncap.data.synthetic.speech import Espeak, fill_apart, speak
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data

TABLE = "stimuli.jsonl"


def make_stimuli(out: Path, speakers: int, seed: int = 0) -> Path:
    """Synthesise `speakers` voices' stimuli into a new folder; the manifest's path is returned.

    A folder that is there with its manifest is taken as it is.

    Raises:
        UserError: the folder holds something else, cannot be written, or eSpeak NG is missing.
    """
    if (out / TABLE).is_file():
        return out / TABLE
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not an empty folder; give a new one")
    voices(speakers, seed)  # refuses impossible numbers before a process is started
    fill_apart(out, _synthesise, speakers, seed)
    return out / TABLE


def _synthesise(folder: Path, speakers: int, seed: int) -> None:
    espeak, words = Espeak(), load_data("conflict.yaml")
    utterances = []
    for number, voice in enumerate(voices(speakers, seed)):
        rng = np.random.default_rng([seed, 3, number])
        for place, (name, kind) in enumerate(words["stimuli"].items()):
            clip = clip_of(voice, kind["emotion"], 0, place, rng, kind["intensity"])
            for language, sentence in words["sentence"].items():
                spoken = voice.name if language == "en" else f"cmn+{voice.name.partition('+')[2]}"
                own = replace(clip, name=f"{voice.speaker}-{name}-{language}")
                path = folder / voice.speaker / f"{own.name}.wav"
                speak(espeak, sentence.rstrip(".。") + clip.ending, spoken, own, path)
                utterances.append(
                    Utterance(
                        id=f"stimulus-{own.name}",
                        root=".",
                        audio=f"{voice.speaker}/{own.name}.wav",
                        corpus="stimuli",
                        language=language,
                        speaker=f"stimuli-{voice.speaker}",
                        gender=voice.gender,
                        transcript=sentence,
                        emotion=kind["emotion"],
                        intensity=kind["intensity"],
                        extra={"synthetic": True, "stimulus": name, "style": kind["style"], "voice": spoken},
                    )
                )
    write_manifest(folder / TABLE, utterances)
