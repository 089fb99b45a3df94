"""perdure's door to the network: webhooks in, health out. Starlette and uvicorn have this one room, and are imported late.

`perdure serve` is the caller. The rooms: `application` (addresses, who may ask), `webhooks` (one delivery, from the socket to the inbox),
`writing` (many deliveries in one durable transaction), `listening` (sockets, slow senders, the end), `secrets`, `notify` (systemd).
Nothing is answered with a 2xx before it is durable.
"""
