"""Metrics for Prometheus, served by `GET /metrics` of `perdure serve`.

All numbers come from the store, and those about disk space from the volumes. There are no counters
in memory, so every `serve` with the same database reports the same numbers, and a restart loses
nothing. Only this package imports prometheus-client. Its modules:

- `tallies` adds up attempts that have ended (pure), and `follower` reads each of them once.
- `disk` measures the disk usage at intervals.
- `families` names the metrics, and `exposition` renders them.
"""
