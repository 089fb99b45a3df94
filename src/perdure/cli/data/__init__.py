"""Verbs on what perdure keeps: conversations, capsules, homes, clean-up."""
