"""Measures perdure, and in the same run what it is compared with. `make bench` prints the table.
Nothing here is a test."""
