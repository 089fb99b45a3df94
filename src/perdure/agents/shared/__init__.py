"""Code that the drivers share: bridges, tool calls, conversation files, homes, JSON lines, logins,
outcomes, programs."""
