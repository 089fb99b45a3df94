"""Clients of the forges' REST APIs: `perdure.protocols.ForgeApi` for GitHub, Gitea, Forgejo and
GitLab.

`perdure serve` wires them: `connections` makes the clients of the configuration, and `dispatch` and
`replies` receive them as protocols. The modules: `http` (one request and its failures), `deadline`
(ends a request that hangs), `tokens` (where tokens are kept), `gitea_like` (what GitHub and Gitea
have in common), `github`, `gitea` and `gitlab`. Only this package uses httpx2, and it is imported
late.

Each client has one address, which the owner configured. Neither a forge's answer nor a text that
somebody wrote can send a request with the token to another host. A request is made once. The caller
keeps track of what is to be done, and asks again when the forge allows it.
"""
