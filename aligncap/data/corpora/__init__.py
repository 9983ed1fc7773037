"""Corpora people have, each read from its own layout into utterances.

A reader is one small module with `read(folder) -> (utterances, problems)`; `prepare` adds what the sound
files say and writes the manifest.
"""

from aligncap.data.corpora.prepare import PrepareReport, prepare
from aligncap.data.corpora.registry import corpora, reader

__all__ = ["PrepareReport", "corpora", "prepare", "reader"]
