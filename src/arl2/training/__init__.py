"""Training: one loop for codec, teacher and students, with its settings, checkpoints and logs."""
