"""Who says what and how in synthetic speech: voices, sentences, and the numbers behind each emotion."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data

_DATA = load_data("synthetic.yaml")
SENTENCES: tuple[str, ...] = tuple(_DATA["sentences"])
MANNERS: dict[str, Row] = _DATA["manners"]  # how each emotion differs from neutral speech
MAX_SPEAKERS = 2 * len(_DATA["accents"]) * len(_DATA["variants"]["female"])
_BASE_WORDS_PER_MINUTE = 165.0
_BASE_LEVEL_DBFS = -26.0
_UNITS_PER_SEMITONE = 80 / 12.8  # of eSpeak's pitch: 10 to 90 moved F0 from 74 to 155 Hz
_INTENSITIES = {"normal": 0.8, "strong": 1.2}


@dataclass(frozen=True)
class Voice:
    """A synthetic speaker: an eSpeak voice and habits of pitch, tempo and loudness."""

    speaker: str
    gender: str
    name: str  # eSpeak's
    pitch_st: float
    tempo: float
    level_db: float


@dataclass(frozen=True)
class Clip:
    """Everything that determines one clip."""

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

    def parameters(self) -> dict[str, object]:
        """The numbers of the synthesis, for the manifest."""
        other = ("name", "speaker", "emotion", "intensity", "sentence", "seed")
        return {key: value for key, value in asdict(self).items() if key not in other}


def voices(speakers: int, seed: int) -> list[Voice]:
    """Speakers "01", "02", ...; men and women alternate, and no two share accent and variant.

    Raises:
        UserError: fewer than 1 or more than 50 speakers.
    """
    if not 1 <= speakers <= MAX_SPEAKERS:
        raise UserError(f"synthetic speech has 1 to {MAX_SPEAKERS} speakers, not {speakers}")
    rng, accents = np.random.default_rng([seed, 1]), _DATA["accents"]
    found = []
    for i in range(speakers):
        gender = ("male", "female")[i % 2]
        variants = _DATA["variants"][gender]
        lap, variant = divmod(i // 2, len(variants))
        accent = accents[(i // 2 + lap) % len(accents)]
        found.append(
            Voice(
                speaker=f"{i + 1:02}",
                gender=gender,
                name=f"{accent}+{variants[variant]}",
                pitch_st=float(rng.uniform(-1.5, 1.5)),
                tempo=float(rng.uniform(0.93, 1.07)),
                level_db=float(rng.uniform(-3, 3)),
            )
        )
    return found


def plan(speakers: int, clips_per_speaker: int, seed: int) -> list[Clip]:
    """All clips of a corpus: emotions as equal in number as can be, sentences independent of them.

    Raises:
        UserError: numbers out of range.
    """
    if clips_per_speaker < 1 or seed < 0:
        raise UserError("synthetic speech needs at least 1 clip a speaker and a seed of 0 or more")
    emotions = list(MANNERS)
    clips = []
    for number, voice in enumerate(voices(speakers, seed)):
        rng = np.random.default_rng([seed, 2, number])
        order = [emotions[(number + i) % len(emotions)] for i in range(clips_per_speaker)]
        texts = [
            int(s) for lap in range(-(-clips_per_speaker // 12)) for s in rng.permutation(len(SENTENCES))
        ]
        clips += [clip_of(voice, emotion, texts[i], i, rng) for i, emotion in enumerate(order)]
    return clips


def clip_of(
    voice: Voice,
    emotion: str,
    sentence: int,
    number: int,
    rng: np.random.Generator,
    intensity: str | None = None,
) -> Clip:
    """A voice's clip of an emotion, about its habits and with some chance; None: intensity is drawn too."""
    manner, neutral = MANNERS[emotion], MANNERS["neutral"]
    if intensity is None:
        intensity = "normal" if emotion == "neutral" else ("normal", "strong")[int(rng.integers(2))]
    much = _INTENSITIES[intensity]
    pitch_st = voice.pitch_st + much * manner["pitch_st"] + rng.normal(0, 0.8)
    pitch_range = (
        neutral["pitch_range"] + much * (manner["pitch_range"] - neutral["pitch_range"]) + rng.normal(0, 8)
    )
    tempo = voice.tempo * manner["tempo"] ** much * np.exp(rng.normal(0, 0.05))
    level = _BASE_LEVEL_DBFS + voice.level_db + much * manner["level_db"]
    return Clip(
        name=f"{voice.speaker}-{number + 1:03}-{emotion}",
        speaker=voice.speaker,
        emotion=emotion,
        intensity=intensity,
        sentence=sentence,
        words_per_minute=int(np.clip(round(_BASE_WORDS_PER_MINUTE * tempo), 90, 300)),
        pitch=int(np.clip(round(45 + _UNITS_PER_SEMITONE * pitch_st), 0, 99)),
        pitch_range=int(np.clip(round(pitch_range), 0, 99)),
        level_dbfs=round(level + rng.normal(0, 1.0), 2),
        tilt_db=round(much * manner["tilt_db"] + rng.normal(0, 0.8), 2),
        tremor=round(float(np.clip(much * manner["tremor"] + rng.normal(0, 0.06), 0, 1)), 3),
        ending=manner["ending"],
        seed=int(rng.integers(1 << 31)),
    )
