"""Metrics for Prometheus, served by `GET /metrics` of `perdure serve`.

All numbers come from the store, and those about disk space from the volumes. Nothing is counted on
the side, so every `serve` over one database reports the same, and a restart loses nothing.
`tallies` adds up attempts that have ended (pure), `follower` reads each of them once, `disk`
measures the disk usage from time to time, `families` names the metrics, `exposition` renders them.
Only this package imports prometheus-client.
"""
