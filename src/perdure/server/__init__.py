"""The network service: receives webhooks, serves the API and the dashboard.

`perdure serve` is the caller. The modules: `application` (all addresses), `guard` and `principal`
(authentication), `tokens`, `problems` (errors in answers), `webhooks` (one delivery, from the
socket to the inbox), `batches` (many deliveries in one durable transaction), `journal` (one reader
for all listeners), `api`, `dashboard`, `metrics` (the parts behind the guard, listed in `routes`,
built from `context`), `sockets` (sockets, slow clients, the shutdown), `secrets`, `notify`
(systemd). Only this package uses Starlette and uvicorn, and they are imported late. Nothing is
answered with a 2xx before it is durable.
"""
