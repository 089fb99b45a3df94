"""This machine: git, processes, agents' homes, volumes, wake-ups, and what keeps secrets in."""
