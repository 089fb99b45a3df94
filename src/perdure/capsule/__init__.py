"""Capsules: a run's checkpoint, made portable. One file, or the same parts in an object store."""
