"""perdure with a real Gitea: `make test-forge`."""
