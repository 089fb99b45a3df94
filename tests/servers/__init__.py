"""Real servers for tests, from Debian's packages: each started on its own files, at a free port,
and gone with its test."""
