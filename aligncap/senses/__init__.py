"""Emotion from words, voice and face, each by a small classifier of its own, and what they say together."""
