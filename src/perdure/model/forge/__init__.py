"""Data types for forges: deliveries, rules, sources, postings, and the current state of issues,
pull requests and checks."""
