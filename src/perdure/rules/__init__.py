"""Decisions and texts as pure functions of their arguments. No module here reads a file, a clock or
a network."""
