"""The training loop: configuration, optimizers, checkpoints, processes."""
