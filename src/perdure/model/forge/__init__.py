"""The nouns of forges: deliveries, rules, sources, postings, and the state of things on a forge."""
