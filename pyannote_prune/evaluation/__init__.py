"""Diarization errors, speed and memory, side by side."""
