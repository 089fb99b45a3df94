"""The network service: receives webhooks, and serves the API and the dashboard. Called by `perdure
serve`.

- `application`: all addresses, put together. `routes` lists the protected ones.
- `guard`, `principal`, `tokens`, `limits`: authentication and permissions.
- `problems`: errors as HTTP answers.
- `webhooks`, `batches`: one delivery, from the socket to the inbox; many in one transaction.
- `journal`: one reader of the journal for all listeners.
- `api`, `dashboard`, `metrics`: the protected parts, built from the services in `context`.
- `sockets`: sockets, slow clients, the shutdown.
- `secrets`, `notify`: webhook secrets; messages to systemd.

Only this package uses Starlette and uvicorn, and both are imported only when needed. No request is
answered with a 2xx before its effect is durable.
"""
