"""Verbs for `perdure serve`: the server, its tokens and its inbox."""
