"""The command line. Each group of verbs has a package. `main` finds the module of a verb, and
`compose` builds the engine for it. See `perdure.cli.main`."""
