"""`operator`: creates Jobs for the TaskRuns of a Kubernetes cluster; see
`perdure.kubernetes.operator`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.runs.pool import say
from perdure.errors import PerdureError, UsageError
from perdure.host.extras import install_command
from perdure.model.durations import duration
from perdure.rules.text import write_stderr

if TYPE_CHECKING:
    from perdure.kubernetes.operator import Options

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def operator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="watch the TaskRuns of this namespace; repeatable",
    )
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="watch the TaskRuns of all namespaces"
    )
    parser.add_argument(
        "--image",
        default=os.environ.get("PERDURE_IMAGE", ""),
        help="the image of the attempts, with perdure and the agents",
    )
    parser.add_argument(
        "--service-account",
        default="",
        metavar="NAME",
        help="the account of the attempts' pods; its token is not mounted",
    )
    parser.add_argument(
        "--make-service-account",
        action="store_true",
        help="create that account in each namespace where attempts run",
    )
    parser.add_argument(
        "--network-policy",
        type=_object,
        default={},
        metavar="JSON",
        help="the spec of a NetworkPolicy to create in each namespace where attempts run",
    )
    parser.add_argument(
        "--read-logs",
        action="store_true",
        help="report an attempt's conversation while it runs; needs `get` on pods/log",
    )
    parser.add_argument(
        "--defaults",
        default="{}",
        metavar="JSON",
        help="defaults for the fields `pod` and `workspace` of all TaskRuns",
    )
    parser.add_argument(
        "--http-host",
        action="append",
        type=_host,
        default=[],
        metavar="HOST",
        help="permit attempts to fetch from HOST[:PORT] by http without TLS; repeatable",
    )
    parser.add_argument(
        "--ssh-host",
        action="append",
        type=_host,
        default=[],
        metavar="HOST",
        help="permit attempts to fetch from HOST[:PORT] by ssh; repeatable",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="port of /healthz, /readyz and /metrics (default: 8080); 0: any free port",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=16,
        help="maximum number of TaskRuns handled at once (default: 16)",
    )
    parser.add_argument(
        "--patience",
        type=_duration,
        default=1800.0,
        metavar="TIME",
        help=(
            "maximum wait of an attempt for something that only a person can fix (default: 30m); "
            "the wait for a quota, for space on a node or for another writer has no limit"
        ),
    )
    parser.add_argument(
        "--check",
        default="",
        metavar="LABELS",
        help=(
            "check this account's rights, and the probes of the operator pods with these labels; "
            "then exit"
        ),
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: one object a line, with time and level (default: text)",
    )
    parser.add_argument(
        "--deaf",
        type=_duration,
        default=180.0,
        metavar="TIME",
        help="maximum time without data from a watch before /healthz fails (default: 3m)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected a port from 0 to 65535")
    return int(text)


def _host(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", text.lower()):
        raise argparse.ArgumentTypeError("expected a server's name, or NAME:PORT")
    return text.lower()


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 256")
    return int(text)


def _object(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return found


def _duration(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def operator_verb(arguments: argparse.Namespace) -> int:
    try:
        from perdure.kubernetes.defaults import defaults_of
        from perdure.kubernetes.operator import Options, namespaces, operate
        from perdure.kubernetes.transports import Permitted
    except ModuleNotFoundError as error:
        raise UsageError(
            f"perdure operator needs {error.name}, which is not installed",
            install_command("kubernetes"),
        ) from error
    if not arguments.image:
        raise UsageError(
            "perdure operator needs the image of the attempts",
            "--image NAME, or PERDURE_IMAGE",
        )
    try:
        defaults = defaults_of(arguments.defaults)
    except ValueError as error:
        raise UsageError(
            f"--defaults cannot be used: {error}", "docs/reference/operator.md"
        ) from error
    if OWN_NAMESPACE.is_file():
        own = OWN_NAMESPACE.read_text().strip()
    else:
        own = "default"
    options = Options(
        namespaces=namespaces(arguments.namespace, arguments.all_namespaces, own),
        image=arguments.image,
        account=arguments.service_account,
        defaults=defaults,
        permitted=Permitted(http=frozenset(arguments.http_host), ssh=frozenset(arguments.ssh_host)),
        policy=arguments.network_policy,
        make_account=arguments.make_service_account,
        read_logs=arguments.read_logs,
        port=arguments.port,
        workers=arguments.workers,
        patience_s=arguments.patience,
        silent_limit_s=arguments.deaf,
    )
    if arguments.check:
        return _check(options, own, arguments.check)
    operate(options, _log(arguments.log_format, "info"), _log(arguments.log_format, "warning"))
    return 0


def _check(options: Options, own: str, selector: str) -> int:
    """Check an installed operator. Return the exit code."""
    from perdure.kubernetes.api import Api, Away
    from perdure.kubernetes.installation import check
    from perdure.kubernetes.operator import connection

    async def run() -> bool:
        config = connection()
        api = Api(config)
        try:
            return await check(api, options, own, selector, print)
        except Away as error:
            raise PerdureError(
                f"the API server at {config.cluster.server} does not answer: {error}",
                "check the address and the network",
            ) from error
        finally:
            await api.close()

    return 0 if asyncio.run(run()) else 1


def _log(form: str, level: str) -> Callable[[str], None]:
    """Return a function that writes a message to the log, as text or as a JSON object."""
    if form == "text":
        return say

    def write(text: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": at, "level": level, "logger": "perdure.operator", "message": text}
        write_stderr(json.dumps(line, ensure_ascii=False))

    return write
