"""The workdir's part of a checkpoint: saved, compared, restored, moved."""
