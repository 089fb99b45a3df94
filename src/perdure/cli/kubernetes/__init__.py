"""Verbs for a Kubernetes cluster, and the programs that run in its pods."""
