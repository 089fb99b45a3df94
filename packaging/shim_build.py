"""Compiles the shim when perdure is built or installed. Called by hatchling, for each wheel.

The program is src/perdure/host/shim.c, and is named `shim-HASH` by the hash of this source, so that
a program of another source is never run. The wheel then gets the tag of a platform. Without a
compiler it gets none: it has no program, and perdure uses shim.py.

PERDURE_SHIM chooses how it is compiled:

    (not set)       by CC, or `cc`, for this machine; in an editable installation, beside its source
    none            not at all
    x86_64, aarch64 by zig, statically with musl: for a wheel that any Linux with this processor can
                    use (`make dist`)
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/perdure/host/shim.c")
FLAGS = (
    *("-std=c11", "-Os", "-s", "-Wall", "-Wextra", "-D_FILE_OFFSET_BITS=64"),
    *("-fPIE", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
)
LINKED = (
    ("-static-pie", "-Wl,-z,relro,-z,now"),
    ("-static",),
    ("-pie", "-Wl,-z,relro,-z,now"),
)
"""How the program is linked: the first way that works. A static program starts faster, and has
fewer pages of its own; many distributions ship no static C library by default."""
ZIG = "ziglang==0.15.2"
RELEASES = {
    each: (f"{each}-linux-musl", f"manylinux2014_{each}.manylinux_2_17_{each}.musllinux_1_1_{each}")
    for each in ("x86_64", "aarch64")
}
"""The target of zig and the platform tags of the wheel, by processor. The program is static, so it
runs with any C library."""
EXITS_WITHOUT_DIRECTORY = 1


def name_of(source: bytes) -> str:
    """Return the name of the program that is made of this source (see `launch.compiled_shim`)."""
    return f"shim-{hashlib.sha256(source).hexdigest()[:16]}"


def compile_here(source: Path, program: Path, compiler: Sequence[str]) -> str:
    """Compile the program for this machine. Return why that failed, or an empty string."""
    problem = ""
    for linked in LINKED:
        words = [*compiler, *FLAGS, *linked, "-o", str(program), str(source)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"{compiler[0]}: {error.strerror}"
        if done.returncode == 0 and runs(program):
            return ""
        problem = problem or done.stderr or "the program does not start"
    return problem


def runs(program: Path) -> bool:
    """Return whether this machine can run the program: without a directory it fails at once."""
    try:
        done = subprocess.run([program], stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return done.returncode == EXITS_WITHOUT_DIRECTORY


def cross_compile(source: Path, program: Path, target: str) -> None:
    """Compile the program with zig, statically with musl. Raise CalledProcessError if it fails."""
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    subprocess.run([*zig, *FLAGS, "-static", "-o", str(program), str(source)], check=True)


def _license_of_musl() -> Path:
    """Return the license of the C library that is in a cross-compiled program."""
    import ziglang

    return Path(ziglang.__file__).parent / "lib" / "libc" / "musl" / "COPYRIGHT"


class CompiledShimHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the program to the wheel, or puts it into the checkout for an editable installation."""

    def dependencies(self) -> list[str]:
        return [ZIG] if os.environ.get("PERDURE_SHIM") in RELEASES else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        chosen = os.environ.get("PERDURE_SHIM", "")
        if chosen not in ("", "none", *RELEASES):
            raise ValueError(f"PERDURE_SHIM: expected none, x86_64 or aarch64, got {chosen!r}")
        source = Path(self.root) / SOURCE
        self._scratch = tempfile.TemporaryDirectory(prefix="shim-")
        program = Path(self._scratch.name) / name_of(source.read_bytes())
        if chosen == "none" or (not chosen and sys.platform != "linux"):
            return
        if chosen:
            target, platform = RELEASES[chosen]
            cross_compile(source, program, target)
        else:
            platform = ""
            compiler = shlex.split(os.environ.get("CC") or "cc")
            if problem := compile_here(source, program, compiler):
                self.app.display_warning(f"the shim is not compiled: {problem.strip()}")
                return
        if version == "editable":
            _put_beside(source, program)
            return
        if chosen:
            build_data["force_include"][str(_license_of_musl())] = "perdure/host/shim-musl.txt"
        build_data["force_include"][str(program)] = f"perdure/host/{program.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform or this_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._scratch.cleanup()


def this_platform() -> str:
    """Return the platform tag of this machine, which says nothing about its C library. An index
    does not accept it."""
    from packaging.tags import platform_tags

    return next(each for each in platform_tags() if each.startswith("linux_"))


def _put_beside(source: Path, program: Path) -> None:
    """Put the program beside its source, in one step, and remove those of other sources."""
    target = source.with_name(program.name)
    fresh = source.with_name(f"{program.name}.{os.getpid()}")
    fresh.write_bytes(program.read_bytes())
    fresh.chmod(0o755)
    fresh.replace(target)
    for other in source.parent.glob("shim-*"):
        if other != target:
            other.unlink(missing_ok=True)
