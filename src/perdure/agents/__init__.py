"""Drivers for the agents: one package for each CLI, and the code that they share.

`transcripts` keeps perdure's own copies of conversations, `rehearsal` is a scripted model server,
and `registry` loads a driver by its name.
"""
