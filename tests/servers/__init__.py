"""Real servers for tests, from Debian's packages. Each has its own files and a free port, and is
removed with its test."""
