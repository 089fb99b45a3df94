"""Runs the rehearsal as a program: `python -m perdure.agents.rehearsal --script FILE [--port N]
[--port-file F] [--record F.jsonl]`.

The program prints its address, serves until SIGINT or SIGTERM, and exits with 0. The port file is
written atomically when the server listens.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from perdure.agents.rehearsal.server import Rehearsal
from perdure.errors import PerdureError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m perdure.agents.rehearsal",
        description="A scripted model server on 127.0.0.1.",
    )
    parser.add_argument("--script", type=Path, required=True, help="file with the script")
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)"
    )
    parser.add_argument(
        "--port-file", type=Path, help="file to write the port to, once the server listens"
    )
    parser.add_argument(
        "--record", type=Path, help="file to append every request to, as JSON lines"
    )
    parser.add_argument("--codex-home", type=Path, help="directory to write Codex's config.toml to")
    options = parser.parse_args(argv)
    ends = {signal.SIGINT, signal.SIGTERM}
    # Block the signals before any thread starts. Then the signals are blocked in all threads, and
    # only `sigwait` receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with Rehearsal(
            options.script.read_text(encoding="utf-8"), port=options.port, record=options.record
        ) as rehearsal:
            if options.codex_home:
                rehearsal.write_codex_home(options.codex_home)
            if options.port_file:
                draft = options.port_file.with_name(f"{options.port_file.name}.{os.getpid()}")
                draft.write_text(f"{rehearsal.port}\n")
                draft.replace(options.port_file)
            print(rehearsal.url, flush=True)
            signal.sigwait(ends)
    except PerdureError as error:
        print(f"{options.script}: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
