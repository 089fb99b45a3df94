"""Capsules: a checkpoint of a run in portable form, as one file or as objects in a checkpoint
store."""
