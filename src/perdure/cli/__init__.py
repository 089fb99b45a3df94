"""The command line: one file a verb family, `main` to choose, `compose` to wire. See
`perdure.cli.main`."""
