"""Verbs on runs, plans and the conversations of runs."""
