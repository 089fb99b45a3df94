"""Writes `docs/reference/api.md` from the tables of verbs from which the API itself is made.
`generate` calls it; it is not a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from perdure.errors import PerdureError
from perdure.server.api.routes import VERBS
from perdure.server.api.verbs import PREFIX, Verb
from perdure.server.problems import AGAIN, STATUSES

TARGET = Path(__file__).resolve().parent / "reference" / "api.md"

HEAD = f"""# The API

<!-- Made by docs/generate.py from the code. Do not edit: change the code, then run it. -->

Every command and list of the command line has an address below `{PREFIX}`, with the JSON of its `--json`. How to use it: [the
API](../how-to/api.md). The running service describes the same, with every field, as an OpenAPI 3.1 document: `GET {PREFIX}/openapi.json`.

A request carries `Authorization: Bearer TOKEN` (`perdure token new NAME --scope ...`). Bodies are JSON objects, read strictly: an unknown
field, a repeated key, NaN or half of a surrogate pair is answered with 400. Times are milliseconds since 1970, durations seconds, money US
dollars. Fields are added without a new `schema_version`.

No `GET` changes anything. `?` marks optional fields and parameters.
"""

STREAMS = f"""## Live events

| Address | Scope | What it gives |
|---|---|---|
| `GET {PREFIX}/events` | read | records of all runs, from now on, as server-sent events |
| `GET {PREFIX}/runs/RUN/events` | read | records of one run, from its first one on |

`data` is a record as `perdure logs --json` prints it, `id` its number. With the header `Last-Event-ID` (or `?after=`) everything after that
number comes first, each record once and in order. After 15 s without news a comment line is sent, and the token is looked at again.
A reader that is 2,000 records behind, or has taken nothing for 30 s, is let go and comes back with the last id that it saw; more than 256
readers at once are answered 503. When the service ends, so do the streams.
"""

OTHERS = (
    (
        "400",
        "the request does not fit: bad JSON, a field or parameter that is not known, twice, or of "
        "another type",
    ),
    ("401", "no token, or one that is not good"),
    (
        "403",
        "the token's scope does not reach; a page of another site asks; a signed-in browser "
        "without `x-form-secret`",
    ),
    (
        "408, 413, 415",
        "the body took longer than 30 s, is longer than 4 MiB, or is not `application/json`",
    ),
    ("421", "asked by a host name that is not in the setting `serve_hosts`"),
    (
        "429",
        "twenty tokens that were not good came from that address within a minute; one that was "
        "good before is still taken",
    ),
)


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *verbs(), STREAMS, *statuses()])


def verbs() -> Iterator[str]:
    for group in dict.fromkeys(verb.path.split("/")[1] for verb in VERBS):
        yield from (
            f"## {group}",
            "",
            "| Request | Scope | What it does | Fields |",
            "|---|---|---|---|",
        )
        for verb in VERBS:
            if verb.path.split("/")[1] == group:
                path = re.sub(r"{(\w+)}", lambda found: found[1].upper(), verb.path)
                yield f"| `{verb.method} {path}` | {verb.scope} | {verb.says} | {fields(verb)} |"
        yield ""


def fields(verb: Verb) -> str:
    """Return the parameters of a verb's query, or the fields of its body."""
    kind = verb.body or verb.query
    return ", ".join(
        f"`{each.encode_name}`{'' if each.required else '?'}"
        for each in msgspec.structs.fields(kind)
    )


def statuses() -> Iterator[str]:
    yield from (
        "## Statuses",
        "",
        "What goes wrong is `application/problem+json`: `status`, `title`, `detail` (the sentence "
        "that the command line",
    )
    yield from (
        "prints) and, where there is a next step, `hint`.",
        "",
        "| Status | When |",
        "|---|---|",
    )
    for status, says in OTHERS:
        yield f"| {status} | {says} |"
    for status in dict.fromkeys(status for _, status in STATUSES):
        kinds = [kind for kind, its in STATUSES if its == status]
        words = "; ".join("anything else" if kind is PerdureError else said(kind) for kind in kinds)
        again = f" (`Retry-After: {AGAIN[status]}`)" if status in AGAIN else ""
        yield f"| {status} | {words}{again} |"
    yield ""


def said(kind: type[PerdureError]) -> str:
    """Return the first sentence of an error's docstring, which says when the error is raised."""
    first = " ".join((kind.__doc__ or "").split()).partition(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:]


def problem() -> str:
    """Return one sentence if the page on disk differs from the one made from the code, else an
    empty string."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    return (
        ""
        if there == page()
        else f"reference/{TARGET.name} is not up to date: run docs/generate.py"
    )


def write() -> None:
    TARGET.write_text(page(), encoding="utf-8")
