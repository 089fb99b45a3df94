"""`operator`: turns TaskRuns of a Kubernetes cluster into Jobs; see
`perdure.kubernetes.operator`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from perdure.cli.runs.pool import say
from perdure.errors import UsageError
from perdure.host.extras import install_command
from perdure.model.durations import duration

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def operator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="TaskRuns of this namespace; may be repeated",
    )
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="TaskRuns of all namespaces"
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
        "--port",
        type=_port,
        default=8080,
        help="where /healthz, /readyz and /metrics answer (default: 8080); 0: any free port",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=16,
        help="how many TaskRuns are handled at once (default: 16)",
    )
    parser.add_argument(
        "--patience",
        type=_duration,
        default=1800.0,
        metavar="TIME",
        help=("how long an attempt may be blocked before it asks for a person (default: 30m)"),
    )
    parser.add_argument(
        "--deaf",
        type=_duration,
        default=180.0,
        metavar="TIME",
        help="maximum silence of a watch before /healthz fails (default: 3m)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected a port from 0 to 65535")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 256")
    return int(text)


def _duration(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def operator_verb(arguments: argparse.Namespace) -> int:
    try:
        from perdure.kubernetes.operator import Options, namespaces, operate
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
    own = OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.is_file() else "default"
    options = Options(
        namespaces=namespaces(arguments.namespace, arguments.all_namespaces, own),
        image=arguments.image,
        account=arguments.service_account,
        port=arguments.port,
        workers=arguments.workers,
        patience_s=arguments.patience,
        deaf_s=arguments.deaf,
    )
    operate(options, say)
    return 0
