"""Synthetic speech: a corpus for trying everything out without downloading recordings.

eSpeak NG speaks neutral sentences in many voices; pitch, pitch range, rate, loudness, spectral tilt and
tremor follow the emotion, about each voice's own habit and with some chance a clip, so that the emotions
overlap a little. It is formant synthesis: the emotion is only what these numbers say, and nothing learnt here
is known to hold for people.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np

from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.data.synthetic.plan import SENTENCES, Clip, Voice, plan, voices
from aligncap.utils.errors import UserError
from aligncap.utils.io import whole_folder

TABLE = "synthetic.jsonl"
SPEAKERS, CLIPS_PER_SPEAKER = 24, 25

_RETRIEVE, _SYNCHRONOUS = 1, 2  # espeak_AUDIO_OUTPUT: samples to the callback; Synth returns when done
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_UTF8 = 1  # espeakCHARS_UTF8
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def read_speech(folder: Path) -> list[Utterance]:
    """The clips of a folder that `make_speech` filled; none where it did not."""
    if not (folder / TABLE).is_file():
        return []
    return [replace(u, root=str(folder)) for u in read_manifest(folder / TABLE)]


def make_speech(
    out_folder: str | Path,
    speakers: int = SPEAKERS,
    clips_per_speaker: int = CLIPS_PER_SPEAKER,
    seed: int = 0,
) -> Path:
    """Synthesise a corpus of mono 16-bit wav files and its manifest; the manifest's path is returned.

    The same arguments give the same bytes with the same eSpeak NG. The folder appears when all is done, and
    synthesis runs in a process of its own.

    Raises:
        UserError: the folder is not empty, the numbers are out of range, or eSpeak NG is missing.
    """
    out = Path(out_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not an empty folder; give a new one, or delete it to synthesise again")
    plan(speakers, clips_per_speaker, seed)  # refuses impossible numbers before a process is started
    fill_apart(out, _synthesise, speakers, clips_per_speaker, seed)
    return out / TABLE


def fill_apart(out: Path, synthesise: Callable[..., None], *numbers: int) -> None:
    """Fill a folder by `synthesise(folder, *numbers)` in a process of its own; it appears when all is done.

    Raises:
        UserError: the folder cannot be written, or eSpeak NG is missing.
    """
    context = multiprocessing.get_context("spawn")  # the library can end the process that it runs in
    try:
        with whole_folder(out) as work, ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(synthesise, work, *numbers).result()
    except BrokenProcessPool:
        raise UserError("eSpeak NG ended its process; install espeakng-loader again") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose another folder") from error


def shape(samples: np.ndarray, rate: int, clip: Clip) -> np.ndarray:
    """Give synthesised samples the clip's tilt, tremor and loudness.

    Args:
        samples: (n,) at `rate` Hz.

    Returns:
        (m,) within -0.99 to 0.99, RMS 10 ** (clip.level_dbfs / 20) unless a peak forbids it; m ≈ n.
    """
    rng = np.random.default_rng(clip.seed)
    x = _tremble(samples, rate, clip.tremor, rng)
    spectrum = np.fft.rfft(x)
    octaves = np.log2(np.clip(np.fft.rfftfreq(len(x), 1 / rate), 150.0, 6000.0) / 1000.0)
    x = np.fft.irfft(spectrum * 10 ** (clip.tilt_db * octaves / 20), len(x))
    gain = 10 ** (clip.level_dbfs / 20) / max(float(np.sqrt(np.mean(x**2))), 1e-9)
    return x * min(gain, 0.99 / max(float(np.abs(x).max()), 1e-9))


def _tremble(x: np.ndarray, rate: int, tremor: float, rng: np.random.Generator) -> np.ndarray:
    """Shake pitch and loudness at 5 to 8 Hz; `tremor` 1 is about 5 % of the pitch and half the amplitude."""
    if tremor <= 0:
        return x
    time = np.arange(len(x)) / rate
    speed = rng.uniform(5.0, 8.0)
    knots = np.arange(0, time[-1] + 0.06, 0.03)
    wander = np.interp(time, knots, rng.normal(0, 1, len(knots)))
    phase = 2 * np.pi * speed * time + rng.uniform(0, 2 * np.pi)
    read_at = time + 0.05 * tremor * np.sin(phase) / (2 * np.pi * speed)
    shaken = np.interp(read_at, time, x)
    return shaken * (1 + tremor * (0.35 * np.sin(phase + 1.0) + 0.12 * np.clip(wander, -2, 2)))


def _synthesise(folder: Path, speakers: int, clips_per_speaker: int, seed: int) -> None:
    espeak = Espeak()
    people = {voice.speaker: voice for voice in voices(speakers, seed)}
    utterances = []
    for clip in plan(speakers, clips_per_speaker, seed):
        voice = people[clip.speaker]
        path = folder / clip.speaker / f"{clip.name}.wav"
        speak(espeak, SENTENCES[clip.sentence].rstrip(".") + clip.ending, voice.name, clip, path)
        utterances.append(_utterance(clip, voice))
    write_manifest(folder / TABLE, utterances)


def speak(espeak: Espeak, text: str, voice: str, clip: Clip, path: Path) -> None:
    """Write `text` as the clip says it: a mono wav file of 16 bits; `voice` is eSpeak NG's name of one."""
    import soundfile

    samples = espeak(
        text,
        voice,
        words_per_minute=clip.words_per_minute,
        pitch=clip.pitch,
        pitch_range=clip.pitch_range,
    )
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, shape(_trim(samples, espeak.rate), espeak.rate, clip), espeak.rate, "PCM_16")


def _trim(x: np.ndarray, rate: int) -> np.ndarray:
    """Leave 0.1 s of the silence around the speech."""
    loud = np.flatnonzero(np.abs(x) > 1e-3)
    margin = rate // 10
    return x[max(0, loud[0] - margin) : loud[-1] + margin] if len(loud) else x


def _utterance(clip: Clip, voice: Voice) -> Utterance:
    return Utterance(
        id=f"made-speech-{clip.name}",  # the corpus's first name: random draws depend on ids
        root=".",
        audio=f"{clip.speaker}/{clip.name}.wav",
        corpus="synthetic",
        speaker=f"synthetic-{clip.speaker}",
        gender=voice.gender,
        transcript=SENTENCES[clip.sentence],
        emotion=clip.emotion,
        intensity=clip.intensity,
        extra={"synthetic": True, "voice": voice.name, "parameters": clip.parameters()},
    )


class Espeak:
    """eSpeak NG through ctypes, from the library of the espeakng-loader wheel; its sample rate is `rate`, Hz.

    The library keeps global state and can end the process on its own errors: one a process, of its own.
    """

    def __init__(self) -> None:
        """Load the library and its voices.

        Raises:
            UserError: the wheel is missing or its library does not start on this system.
        """
        try:
            import espeakng_loader

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data = os.fsencode(espeakng_loader.get_data_path())
        except (ImportError, OSError) as error:
            raise UserError(
                f"synthetic speech needs the eSpeak NG library ({error}); pip install espeakng-loader"
            ) from None
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT))
        if self.rate <= 0:
            raise UserError("eSpeak NG does not start; install espeakng-loader again")
        self._blocks: list[np.ndarray] = []
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def __call__(
        self, text: str, voice: str, *, words_per_minute: int, pitch: int, pitch_range: int
    ) -> np.ndarray:
        """Samples of a text, (n,) float64 within -1 to 1 at `self.rate`.

        Args:
            voice: language and variant, such as "en-us+f3".
            words_per_minute: 80 to 450.
            pitch, pitch_range: 0 to 99, 50 being the voice's own.

        Raises:
            UserError: no such voice.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f'eSpeak NG has no voice "{voice}"')
        for parameter, value in (
            (_RATE, words_per_minute),
            (_PITCH, pitch),
            (_RANGE, pitch_range),
            (_VOLUME, 60),  # low enough that no voice clips; loudness is set afterwards
        ):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._library.espeak_ng_SetRandSeed(1)  # breathy voices draw noise, else seeded by the time of day
        self._blocks = []
        data = text.encode("utf-8")
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate([np.zeros(0), *self._blocks])

    def _receive(self, samples: ctypes.Array[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)) / 32768.0)
        return 0
