"""Judges: from items to verdicts."""
