"""Who says what and how in made speech: voices, sentences, and the numbers behind each emotion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aligncap.utils.errors import UserError

SENTENCES = (
    "The blue folder is lying on the table.",
    "They will bring the boxes in the afternoon.",
    "She is waiting at the corner of the street.",
    "There are seven chairs in the other room.",
    "The letter came to the office on Monday.",
    "He put the bread next to the window.",
    "We are taking the early train to the city.",
    "The shop at the bridge opens at nine.",
    "My brother is talking to the new teacher.",
    "The green bottle belongs in the kitchen.",
    "They have painted the door of the garage.",
    "You can leave the keys with my neighbour.",
)
_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029")
_VARIANTS = {
    "male": tuple(f"m{i}" for i in range(1, 8)),
    "female": tuple(f"f{i}" for i in range(1, 6)),
}
MAX_SPEAKERS = 2 * len(_ACCENTS) * len(_VARIANTS["female"])
_BASE_WORDS_PER_MINUTE = 165.0
_BASE_LEVEL_DBFS = -26.0
_UNITS_PER_SEMITONE = 80 / 12.8  # of eSpeak's pitch: 10 to 90 moved F0 from 74 to 155 Hz


@dataclass(frozen=True)
class Manner:
    """How an emotion differs from neutral speech."""

    pitch_st: float  # semitones
    pitch_range: float  # eSpeak units of 0 to 99, 50 being lively reading
    tempo: float  # factor
    level_db: float
    tilt_db: float  # dB an octave: positive is pressed, negative is soft
    tremor: float  # 0 to 1
    ending: str = "."


MANNERS = {
    "neutral": Manner(0.0, 42, 1.00, 0.0, 0.0, 0.0),
    "calm": Manner(-1.5, 28, 0.86, -4.0, -2.5, 0.0),
    "happy": Manner(3.0, 85, 1.12, 3.0, 1.5, 0.0, "!"),
    "sad": Manner(-2.5, 14, 0.76, -6.0, -3.5, 0.25),
    "angry": Manner(1.0, 60, 1.22, 8.0, 4.5, 0.1, "!"),
    "fearful": Manner(4.5, 35, 1.28, 0.0, 0.0, 0.8),
    "disgusted": Manner(-3.0, 65, 0.84, 2.0, 3.0, 0.1),
    "surprised": Manner(5.5, 99, 0.96, 3.0, 1.0, 0.0, "?"),
}
_INTENSITIES = {"normal": 0.8, "strong": 1.2}


@dataclass(frozen=True)
class Voice:
    """A made speaker: an eSpeak voice and habits of pitch, tempo and loudness."""

    speaker: str
    gender: str
    name: str  # eSpeak's
    pitch_st: float
    tempo: float
    level_db: float


@dataclass(frozen=True)
class Clip:
    """Everything that determines one made clip."""

    name: str
    speaker: str
    emotion: str
    intensity: str
    sentence: int
    words_per_minute: int
    pitch: int  # eSpeak's, 0 to 99
    pitch_range: int  # eSpeak's, 0 to 99
    level_dbfs: float
    tilt_db: float  # dB an octave about 1 kHz
    tremor: float
    ending: str
    seed: int

    def parameters(self) -> dict[str, Any]:
        """The numbers of the synthesis, for the manifest."""
        other = ("name", "speaker", "emotion", "intensity", "sentence", "seed")
        return {key: value for key, value in asdict(self).items() if key not in other}


def voices(speakers: int, seed: int) -> list[Voice]:
    """Speakers "01", "02", ...; men and women alternate, and no two share accent and variant.

    Raises:
        UserError: fewer than 1 or more than 50 speakers.
    """
    if not 1 <= speakers <= MAX_SPEAKERS:
        raise UserError(f"made speech has 1 to {MAX_SPEAKERS} speakers, not {speakers}")
    rng = np.random.default_rng([seed, 1])
    made = []
    for i in range(speakers):
        gender = ("male", "female")[i % 2]
        variants = _VARIANTS[gender]
        lap, variant = divmod(i // 2, len(variants))
        accent = _ACCENTS[(i // 2 + lap) % len(_ACCENTS)]
        made.append(
            Voice(
                speaker=f"{i + 1:02}",
                gender=gender,
                name=f"{accent}+{variants[variant]}",
                pitch_st=float(rng.uniform(-1.5, 1.5)),
                tempo=float(rng.uniform(0.93, 1.07)),
                level_db=float(rng.uniform(-3, 3)),
            )
        )
    return made


def plan(speakers: int, clips_per_speaker: int, seed: int) -> list[Clip]:
    """All clips of a corpus: emotions as equal in number as can be, sentences independent of them.

    Raises:
        UserError: numbers out of range.
    """
    if clips_per_speaker < 1 or seed < 0:
        raise UserError("made speech needs at least 1 clip a speaker and a seed of 0 or more")
    emotions = list(MANNERS)
    clips = []
    for number, voice in enumerate(voices(speakers, seed)):
        rng = np.random.default_rng([seed, 2, number])
        order = [emotions[(number + i) % len(emotions)] for i in range(clips_per_speaker)]
        texts = [
            int(s) for lap in range(-(-clips_per_speaker // 12)) for s in rng.permutation(len(SENTENCES))
        ]
        clips += [_clip(voice, emotion, texts[i], i, rng) for i, emotion in enumerate(order)]
    return clips


def _clip(voice: Voice, emotion: str, sentence: int, number: int, rng: np.random.Generator) -> Clip:
    manner, neutral = MANNERS[emotion], MANNERS["neutral"]
    intensity = "normal" if emotion == "neutral" else ("normal", "strong")[int(rng.integers(2))]
    much = _INTENSITIES[intensity]
    pitch_st = voice.pitch_st + much * manner.pitch_st + rng.normal(0, 0.8)
    pitch_range = neutral.pitch_range + much * (manner.pitch_range - neutral.pitch_range) + rng.normal(0, 8)
    tempo = voice.tempo * manner.tempo**much * np.exp(rng.normal(0, 0.05))
    return Clip(
        name=f"{voice.speaker}-{number + 1:03}-{emotion}",
        speaker=voice.speaker,
        emotion=emotion,
        intensity=intensity,
        sentence=sentence,
        words_per_minute=int(np.clip(round(_BASE_WORDS_PER_MINUTE * tempo), 90, 300)),
        pitch=int(np.clip(round(45 + _UNITS_PER_SEMITONE * pitch_st), 0, 99)),
        pitch_range=int(np.clip(round(pitch_range), 0, 99)),
        level_dbfs=round(_BASE_LEVEL_DBFS + voice.level_db + much * manner.level_db + rng.normal(0, 1.0), 2),
        tilt_db=round(much * manner.tilt_db + rng.normal(0, 0.8), 2),
        tremor=round(float(np.clip(much * manner.tremor + rng.normal(0, 0.06), 0, 1)), 3),
        ending=manner.ending,
        seed=int(rng.integers(1 << 31)),
    )
