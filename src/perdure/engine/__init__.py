"""Performs runs: attempts, worker pools, the operations that every interface calls, and the
housekeeping around them."""
