"""Builds the container image of the Containerfile without a container engine, and runs containers
of it."""
