"""Verbs for runs, plans and the conversations of runs."""
