"""Corpora that people have, each read from its own layout into utterances; see `registry` to add one."""

from aligncap.data.corpora import listed, named, table  # noqa: F401  (they register their readers)
from aligncap.data.corpora.prepare import PrepareReport, prepare
from aligncap.data.corpora.registry import Corpus, CorpusFolder, corpora

__all__ = ["Corpus", "CorpusFolder", "PrepareReport", "corpora", "prepare"]
