"""The driver for Claude Code."""
