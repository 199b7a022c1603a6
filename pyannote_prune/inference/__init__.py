"""How a model is executed: executors derived from it, windows, chunks, memory."""
