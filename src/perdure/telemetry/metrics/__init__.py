"""How perdure does, in numbers for Prometheus: `GET /metrics` of `perdure serve` is the caller.

Everything comes from the store (and, for what lies on disk, from the volumes): nothing is counted
on the side, so every `serve` over one database tells the same, and a restart loses nothing.
`tallies` adds up attempts that have ended (pure), `follower` reads each of them once, `disk` walks
the disk now and then, `families` gives the numbers their names, `exposition` is the door.
prometheus-client has this one room.
"""
