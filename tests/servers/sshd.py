"""A real sshd on 127.0.0.1 that serves repositories to the holder of the right key. It needs no
root, no account and no separate network."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import free_port

SSHD = (
    shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or "/usr/sbin/sshd"
)


@dataclass(frozen=True)
class Sshd:
    """A running server. `key` may log in, `stranger` may not. `known_hosts` has the server's host
    key."""

    top: Path
    port: int

    @property
    def key(self) -> Path:
        return self.top / "key"

    @property
    def stranger(self) -> Path:
        return self.top / "stranger"

    @property
    def known_hosts(self) -> Path:
        return self.top / "known hosts"

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    @property
    def config(self) -> Path:
        """Return the path of the configuration that replaces the account's own."""
        return self.top / "ssh_config"

    def url(self, path: Path) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    def configure(self, *lines: str) -> None:
        """Write the configuration. In it the server is called `forge`, and no key of the account is
        tried."""
        words = (
            "Host forge",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            "Host *",
            "IdentityFile none",
            *lines,
        )
        self.config.write_text("".join(f"{line}\n" for line in words))

    @property
    def given(self) -> str:
        """Return the environment of the last command that was run."""
        return (self.top / "environ").read_text()

    @property
    def said(self) -> str:
        return (self.top / "log").read_text()


def _keygen(file: Path) -> str:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)], check=True
    )
    return file.with_suffix(".pub").read_text().strip()


@contextlib.contextmanager
def serving(top: Path) -> Iterator[Sshd]:
    """Run an sshd below `top`, and end it with the `with` block."""
    top.mkdir(parents=True)
    found = Sshd(top, free_port())
    host_key, _ = _keygen(top / "host"), _keygen(found.stranger)
    # As on a forge, the client's command runs below one directory. Its environment is written to a
    # file.
    forced = f'env > {top}/environ; cd {top} && eval \\"$SSH_ORIGINAL_COMMAND\\"'
    (top / "authorized").write_text(f'command="{forced}" {_keygen(found.key)}\n')
    found.known_hosts.write_text(f"[127.0.0.1]:{found.port} {host_key}\n")
    found.configure()
    (top / "sshd_config").write_text(
        f"Port {found.port}\nListenAddress 127.0.0.1\nHostKey {top}/host\nAuthorizedKeysFile "
        f"{top}/authorized\nPidFile {top}/pid\nStrictModes no\nPasswordAuthentication "
        "no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin "
        "prohibit-password\nAllowAgentForwarding yes\nPermitUserRC no\nAcceptEnv "
        "GIT_PROTOCOL\nLogLevel VERBOSE\n"
    )
    if os.getuid() == 0:
        # The directory that sshd needs to drop its privileges. Debian makes it when the service
        # starts.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-E", str(top / "log"), "-f", str(top / "sshd_config")])
    try:
        while "Server listening" not in (
            (top / "log").read_text() if (top / "log").exists() else ""
        ):
            assert server.poll() is None, (top / "log").read_text()
            time.sleep(0.02)
        yield found
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def agent(key: Path) -> Iterator[str]:
    """Run an ssh agent that holds a key. Yield the path of its socket."""
    place = key.with_name("agent")
    server = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        while subprocess.run(
            ["ssh-add", "-q", str(key)],
            env={"SSH_AUTH_SOCK": str(place), "PATH": os.environ["PATH"]},
        ).returncode:
            assert server.poll() is None
            time.sleep(0.02)
        yield str(place)
    finally:
        server.terminate()
        server.wait()
