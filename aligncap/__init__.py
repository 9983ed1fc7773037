"""AlignCap: speech emotion captioning, from a corpus folder to a scored report."""

__version__ = "0.1.0"
