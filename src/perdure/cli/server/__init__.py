"""Verbs of `perdure serve`: the server, its tokens and its inbox."""
