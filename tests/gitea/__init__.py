"""Perdure beside a real Gitea: `make test-forge`."""
