"""Metrics for Prometheus, served by `GET /metrics` of `perdure serve`.

All numbers come from the store, and those about disk space from the volumes. There are no counters
in memory, so every `serve` with the same database reports the same numbers, and a restart loses
nothing. Only this package imports prometheus-client. Its modules:

- `follower` reads each attempt that has ended once, and adds it to the totals of its agent.
- `exposition` measures the disk usage at intervals, names the metrics, and renders them.
"""
