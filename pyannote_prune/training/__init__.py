"""Training: the Hydra application, callbacks."""
