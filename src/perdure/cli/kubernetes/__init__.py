"""Verbs of a Kubernetes cluster, and the programs that run in its pods."""
