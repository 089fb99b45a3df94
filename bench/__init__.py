"""Measures perdure against what stands beside it in the same run. `make bench` prints the table;
nothing here is a test."""
