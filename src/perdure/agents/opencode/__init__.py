"""The driver for OpenCode."""
