"""Verbs for the data that perdure keeps: conversations, capsules, homes, clean-up."""
