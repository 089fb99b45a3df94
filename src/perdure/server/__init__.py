"""The network service: receives webhooks, and serves the API and the dashboard. Called by `perdure
serve`.

- `application`: the ASGI application, built from all routes.
- `guard`, `principal`, `limits`: authentication and permissions. `openid`: the OpenID provider.
- `problems`: errors as HTTP answers.
- `webhooks`: a delivery, from its request to the inbox; the webhook secrets.
- `journal`: one reader of the journal for all listeners.
- `api`, `dashboard`: the routes that need authentication. `context`: the services that they use.
- `sockets`: sockets, slow clients, the shutdown, messages to systemd. `proxies`: trusted proxies.

Only this package uses Starlette and uvicorn, and both are imported only when needed. No request is
answered with a 2xx before its effect is durable.
"""
