"""Speaks to forges: `perdure.protocols.ForgeApi` for GitHub, Gitea, Forgejo and GitLab. httpx2 has
this one room, and is imported late.

`perdure serve` wires it: `connecting` makes the clients of the configuration, which `dispatching`
and `posting` receive as protocols. The rooms: `asking` (one request, and all that can go wrong with
it), `cutting` (the end of one that hangs), `tokens` (where they lie), `alike` (what GitHub and
Gitea have in common), `github`, `gitea` and `gitlab`.

One address a client, chosen by the owner: nothing that a forge answers, and nothing that somebody
wrote, leads a request to another host. A request is made once. Who called keeps what is to be done,
and asks again when the forge says that it may.
"""
