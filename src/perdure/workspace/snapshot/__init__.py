"""Saves, compares, restores and copies the workdir's part of a checkpoint."""
