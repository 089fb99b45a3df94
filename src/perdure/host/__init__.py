"""Access to this machine: git, processes, agents' homes, volumes, wake-ups, privileges and
secrets."""
