"""Creates the API clients of a configuration: one for each source with a token, and one more for
each agent that has its own token.

`perdure serve` calls this at its start. A rule's own token is used for every source that the rule
accepts. An agent with its own token should therefore be limited to one forge. A team with two
forges writes two rules, and limits each to its forge with `sources`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import TracebackType

from perdure.errors import ConfigError, ForgeDenied
from perdure.forge.clients.gitea import Forgejo, Gitea
from perdure.forge.clients.github import ACCEPT, GitHub, api_of
from perdure.forge.clients.gitlab import GitLab
from perdure.forge.clients.http import HttpClient
from perdure.forge.clients.tokens import ForgeToken, token_at
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.rules import Rule
from perdure.model.forge.sources import Source
from perdure.protocols import ForgeApi

JSON = "application/json"


def connect(forge: Forge, address: str, token: ForgeToken, ca_file: Path | None = None) -> ForgeApi:
    """Return a client for the forge at this address. The caller must have checked the address with
    `model.forge.sources.address`."""
    match forge:
        case Forge.GITHUB:
            return GitHub(address, HttpClient(api_of(address), token, "Bearer", ACCEPT, ca_file))
        case Forge.GITLAB:
            return GitLab(address, HttpClient(f"{address}/api/v4", token, "Bearer", JSON, ca_file))
        case Forge.GITEA:
            return Gitea(address, HttpClient(f"{address}/api/v1", token, "token", JSON, ca_file))
        case Forge.FORGEJO:
            return Forgejo(address, HttpClient(f"{address}/api/v1", token, "token", JSON, ca_file))


class Forges:
    """A context manager that holds all API clients, and closes them at the end."""

    def __init__(
        self,
        found: Mapping[tuple[str, str], ForgeApi],
        tokens: Mapping[tuple[str, str], ForgeToken],
    ) -> None:
        self._found, self._tokens = dict(found), dict(tokens)

    def of(self, source: str, rule: str = "") -> ForgeApi | None:
        """Return the client for a source, or None if there is no token. The client uses the token
        of the rule's agent or, if that agent has none, the source's token."""
        return self._found.get((source, rule)) or self._found.get((source, ""))

    def login(self, source: str, rule: str, url: str) -> tuple[str, str] | None:
        """Return the user name and the secret with which the rule's agent uses git at `url`.
        Returns None unless `url` belongs to the forge of the source: a token must not reach another
        host. GitHub, Gitea and GitLab accept the user name `x-access-token` together with a token
        (docs.github.com, apps; docs.gitea.com; docs.gitlab.com)."""
        api, token = (
            self.of(source, rule),
            self._tokens.get((source, rule)) or self._tokens.get((source, "")),
        )
        if api is None or token is None or not f"{url}/".startswith(f"{api.address}/"):
            return None
        return "x-access-token", token.value()

    def login_at(self, url: str) -> tuple[str, str] | None:
        """Return a user name and a secret for git at this address, from any source or agent that
        has a token for it. Returns None if there is none."""
        found = (self.login(source, rule, url) for source, rule in sorted(self._found))
        for login in found:
            if login is not None:
                return login
        return None

    def held(self) -> Sequence[str]:
        """Return all tokens, so that callers can search for them in outgoing data. Omits tokens
        that cannot be read."""
        found = []
        for token in self._tokens.values():
            with suppress(ForgeDenied):
                found.append(token.value())
        return found

    def __enter__(self) -> Forges:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._found.values():
            each.close()


def forges(
    sources: Sequence[Source],
    rules: Sequence[Rule],
    environ: MutableMapping[str, str],
    ca_file: Path | None = None,
) -> Forges:
    """Return the clients of a configuration. Removes the variables with tokens from `environ`, so
    that agents do not inherit them. Raises ConfigError with all problems of the tokens."""
    problems: list[str] = []
    found: dict[tuple[str, str], ForgeApi] = {}
    tokens: dict[tuple[str, str], ForgeToken] = {}
    named: set[tuple[str, str]] = set()
    for source in sources:
        own = {rule.name: rule for rule in rules if _takes(rule, source)}
        tables: dict[str, Source | Rule] = {"": source, **own}
        for name, table in tables.items():
            if not source.url or source.forge is None or not _has_token(table):
                continue
            named.add((source.name, name))
            try:
                token = token_at(table.token_file, table.token_env, table.token_credential, environ)
                assert token is not None
                token.value()
                found[source.name, name] = connect(source.forge, source.url, token, ca_file)
                tokens[source.name, name] = token
            except ForgeDenied as error:
                if name:
                    place = f"agents.{name}"
                else:
                    place = f"webhooks.{source.name}"
                problems.append(f"{place}: {error}")
            except OSError as error:  # ssl.SSLError is a subclass of OSError
                problems.append(
                    f"ca_file: {ca_file} holds no certificates that can be read: "
                    f"{error.strerror or error}"
                )
    for rule in filter(_has_token, rules):
        urls = {source.url for source in sources if source.url and _takes(rule, source)}
        if len(urls) > 1:
            problems.append(
                f"agents.{rule.name}: its token would go to {' and '.join(sorted(urls))}; "
                "name the right one with sources"
            )
    for rule, source in product(rules, sources):
        if (
            rule.least
            and _takes(rule, source)
            and not {(source.name, ""), (source.name, rule.name)} & named
        ):
            problems.append(
                f"agents.{rule.name}: it works for those who may {rule.least}, "
                f"and webhooks.{source.name} has no token to ask the forge with"
            )
    for source in sources:
        environ.pop(source.token_env, None)
    for rule in rules:
        environ.pop(rule.token_env, None)
    if problems:
        raise ConfigError(
            list(dict.fromkeys(problems)),
            "create a token on the forge, and put it into a file that only perdure can read",
        )
    return Forges(found, tokens)


def _has_token(table: Source | Rule) -> bool:
    return bool(table.token_file or table.token_env or table.token_credential)


def _takes(rule: Rule, source: Source) -> bool:
    return not rule.sources or source.name in rule.sources
