"""Real servers for tests, from Debian's packages. Each is started on its own files, at a free port,
and is removed with its test."""
