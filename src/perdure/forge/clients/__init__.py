"""Clients of the forges' REST APIs: `perdure.protocols.ForgeApi` for GitHub, Gitea, Forgejo and
GitLab.

`perdure serve` connects the parts: `connections` creates the clients that are configured, and
`dispatch` and `replies` receive them as protocols. The modules: `http` (one request, its time limit
and its failures), `tokens` (where tokens are kept), `gitea_like` (what the clients for GitHub and
Gitea have in common), `github`, `gitea` (also for Forgejo) and `gitlab`. Within `forge` only this
package uses httpx2, and it is imported late.

Each client has one address, which the owner of the server configured. Neither an answer of the
forge nor text from its users can redirect a request with the token to another host. The clients do
not retry. The caller keeps track of pending work, and retries when the forge allows it.
"""
