"""Speaks to forges: `perdure.protocols.ForgeApi` for GitHub, Gitea, Forgejo and GitLab. httpx2 has
this one room, and is imported late.

`perdure serve` wires it: `connections` makes the clients of the configuration, which `dispatch` and
`replies` receive as protocols. The rooms: `http` (one request, and all that can go wrong with it),
`deadline` (the end of one that hangs), `tokens` (where they lie), `gitea_like` (what GitHub and
Gitea have in common), `github`, `gitea` and `gitlab`.

One address a client, chosen by the owner: nothing that a forge answers, and nothing that somebody
wrote, leads a request to another host. A request is made once. Who called keeps what is to be done,
and asks again when the forge says that it may.
"""
