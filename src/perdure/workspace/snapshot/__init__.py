"""The workdir's half of a checkpoint: taken, compared, restored, moved."""
