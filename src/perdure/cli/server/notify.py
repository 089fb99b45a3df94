"""`notify`: lists the notices that were sent to people, and sends a test message to a channel."""

from __future__ import annotations

import argparse
import json
import sys

from perdure.cli.compose import open_to_read, settings
from perdure.cli.parser import limit_of
from perdure.cli.runs.ls import table
from perdure.cli.text import age, clean, one_line
from perdure.config import Settings
from perdure.errors import ConfigError, NotFound, UsageError
from perdure.model.codec import decode, plain
from perdure.model.notices import Channel, Notice, NoticeBody


def notify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["ls", "test"],
        default="ls",
        help="ls (default): what was sent and what waits; test: send a message to a channel now",
    )
    parser.add_argument(
        "channel",
        nargs="?",
        default="",
        metavar="CHANNEL",
        help="for test: the name of the channel",
    )
    parser.add_argument(
        "-n", "--limit", type=limit_of, default=50, help="maximum number of notices (default: 50)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def notify_verb(arguments: argparse.Namespace) -> int:
    chosen = settings()
    if arguments.what == "test":
        if not arguments.channel:
            raise UsageError("missing argument CHANNEL", "perdure notify test CHANNEL")
        return _test(chosen, arguments.channel)
    if arguments.channel:
        raise UsageError("ls takes no channel", "perdure notify test CHANNEL")
    store = open_to_read(chosen)
    found = store.notices(arguments.limit)
    if arguments.json:
        print(json.dumps({"schema_version": 1, "notices": list(map(plain, found))}, indent=2))
        return 0
    now = store.now()
    rows = []
    for each in found:
        state, why = str(each.state), one_line(each.reason, 200)
        rows.append((each.channel, str(each.event), age(each.at, now), state, _title(each), why))
    table(("CHANNEL", "EVENT", "AGE", "STATE", "OF", "WHY"), rows)
    if not rows and sys.stdout.isatty():
        print(
            "no notice was sent yet"
            if chosen.notify
            else "no channel is configured: [notify.NAME] in the configuration"
        )
    return 0


def _title(notice: Notice) -> str:
    run = decode(notice.body, NoticeBody).data.run
    return one_line(f"{run.name}: {run.title}", 120)


def check_libraries(channels: tuple[Channel, ...]) -> None:
    """Raise ConfigError if a channel needs a library that is not installed."""
    from perdure.engine.notices.senders import missing
    from perdure.host.extras import install_command

    problems = []
    for channel in channels:
        if library := missing(channel):
            problems.append(
                f"notify.{channel.name} needs the library {library}, which is not installed"
            )
    if problems:
        raise ConfigError(problems, install_command("notify"))


def check_push_libraries(chosen: Settings) -> None:
    """Raise ConfigError if push messages are configured, but their libraries are not installed."""
    from perdure.engine.notices.push import missing
    from perdure.host.extras import install_command

    if chosen.serve_push_contact and (absent := missing()):
        problem = f"serve_push_contact is set, and {', '.join(absent)} is not installed"
        raise ConfigError([problem], install_command("push"))


def _test(chosen: Settings, name: str) -> int:
    from perdure.engine.notices.senders import send
    from perdure.engine.notices.trial import trial_notice

    channels = {channel.name: channel for channel in chosen.notify}
    if name not in channels:
        names = ", ".join(channels) or "none is configured"
        raise NotFound(f"There is no channel {name!r}", f"One of: {names}")
    check_libraries((channels[name],))
    send(channels[name], trial_notice(name, chosen.serve_public_url))
    print(f"{clean(name)} accepted the test message")
    return 0
