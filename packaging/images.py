"""Builds both images for a registry and pushes them. `make images` runs it.

    python packaging/images.py --registry registry.example.com/team \\
      --base docker.io/library/debian:trixie-slim@sha256:...

The base must be named by its digest, so that a build can be repeated. The labels come from the
project itself: its version, the commit of the checkout, the address of its repository.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TOP = Path(__file__).parents[1]
sys.path[:0] = [str(TOP / "src"), str(Path(__file__).parent)]
IMAGES = {"perdure-operator": ("--target=operator",), "perdure": ()}
"""The images by name, with the engine's options that select them in the Containerfile."""
DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
HELP = "docker buildx imagetools inspect docker.io/library/debian:trixie-slim"


def commands(
    arguments: argparse.Namespace, version: str, revision: str, source: str
) -> list[list[str]]:
    """Return the engine's commands that build and push both images."""
    values = {"BASE": arguments.base, "VERSION": version, "REVISION": revision, "SOURCE": source}
    given = [f"--build-arg={name}={value}" for name, value in values.items()]
    given += [f"--build-arg={each}" for each in arguments.build_arg]
    found = []
    for name, target in IMAGES.items():
        image = f"{arguments.registry.rstrip('/')}/{name}:{version}"
        common = [f"--platform={arguments.platforms}", *target, *given, "--file=Containerfile"]
        if arguments.engine == "docker":
            attested = ["--provenance=true", "--sbom=true", "--push", f"--tag={image}", "."]
            found.append(["docker", "buildx", "build", *common, *attested])
        else:
            found.append(["buildah", "build", *common, f"--manifest={image}", "."])
            found.append(["buildah", "manifest", "push", "--all", image, f"docker://{image}"])
    return found


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments. Exit with a message if the base has no digest."""
    parser = argparse.ArgumentParser(prog="images.py", allow_abbrev=False)
    parser.add_argument("--registry", required=True, help="such as registry.example.com/team")
    parser.add_argument("--base", required=True, help="image of Debian 13, with its digest")
    parser.add_argument("--platforms", default="linux/amd64,linux/arm64", help="%(default)s")
    parser.add_argument("--engine", choices=("docker", "buildah"), default="docker")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="repeatable"
    )
    parser.add_argument("--print", action="store_true", help="only print the commands")
    found = parser.parse_args(words)
    if not DIGEST.fullmatch(found.base):
        parser.error(f"--base: expected NAME@sha256:..., got {found.base!r}; see it with: {HELP}")
    return found


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Build both images. Return the exit code."""
    from home import home_of

    import perdure

    arguments = parsed(words)
    # git refuses to read the checkout of another user, unless a command names it as safe. Whoever
    # runs this script trusts its checkout already.
    asked = ["git", "-c", f"safe.directory={TOP}", "rev-parse", "HEAD"]
    shown = subprocess.run(asked, cwd=TOP, stdout=subprocess.PIPE, text=True, check=True)
    for command in commands(arguments, perdure.__version__, shown.stdout.strip(), home_of(environ)):
        print(shlex.join(command), flush=True)
        if not arguments.print:
            subprocess.run(command, cwd=TOP, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
