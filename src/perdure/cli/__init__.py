"""The command line: one file for each family of verbs, `main` to find the verb, `compose` to wire
the engine. See `perdure.cli.main`."""
