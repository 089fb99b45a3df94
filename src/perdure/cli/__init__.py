"""The command line. Each family of verbs has a file. `main` finds the verb, and `compose` connects
the engine. See `perdure.cli.main`."""
