"""How good and how fast: diarization errors, speed and memory, side by side."""
