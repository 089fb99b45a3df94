"""The driver for the Gemini CLI."""
