"""perdure: coding-agent runs that last. See `perdure.cli` for the command and `docs/` for the story."""

__version__ = "0.1.0"
