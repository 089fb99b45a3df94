"""perdure's door to the network: webhooks in, API and dashboard out. Starlette and uvicorn have
this one room, and are imported late.

`perdure serve` is the caller. The rooms: `application` (all addresses), `guard` and `principal`
(who may ask), `tokens`, `problems` (errors as the network is told them), `webhooks` (one delivery,
from the socket to the inbox), `batches` (many deliveries in one durable transaction), `journal`
(one reader for all who listen), `api`, `dashboard`, `metrics` (what there is behind the guard,
listed in `routes`, made with `context`), `sockets` (sockets, slow senders and readers, the end),
`secrets`, `notify` (systemd). Nothing is answered with a 2xx before it is durable.
"""
