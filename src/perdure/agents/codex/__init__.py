"""The driver for the Codex CLI."""
