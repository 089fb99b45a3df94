"""Moves changes between a workdir, a checkout and a remote: apply, merge, push."""
