"""What performs runs: the attempt, the worker, the verbs that every door calls, and what looks
after them."""
