"""The engine performs runs: the attempt, the worker, the verbs that every interface calls, and the
housekeeping around them."""
