"""eSpeak NG through ctypes, from the library that the espeakng-loader wheel carries.

The library keeps global state and can end the process on its own errors: use it in a process of its own.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

from aligncap.utils.errors import UserError

_RETRIEVE, _SYNCHRONOUS = 1, 2  # espeak_AUDIO_OUTPUT: samples to the callback; Synth returns when done
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_UTF8 = 1  # espeakCHARS_UTF8
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The synthesiser; one a process. `rate` is its sample rate in Hz."""

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
