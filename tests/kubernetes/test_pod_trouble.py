"""A pod with problems: a checkpoint store that does not answer, a result that cannot be written, a
very early request to end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from msgspec.structs import replace as changed

from perdure import wiring
from perdure.capsule.objects import open_store
from perdure.capsule.publication import CheckpointPublisher, SecretOptions, machine
from perdure.config.files import load
from perdure.kubernetes.order import Order, encode
from perdure.kubernetes.pod import perform_order
from perdure.kubernetes.result import trusted_result
from perdure.kubernetes.secrets import Secrets
from perdure.model import OutcomeKind, TaskSpec
from tests.conftest import Scratch
from tests.kubernetes.pods import SPACES, UID, until

ORDER = Order(
    run=UID, name="t-1", attempt=1, attempts_allowed=3, spec=TaskSpec(prompt="", service="api", task="t-1"), contexts=(1,),
    checkpoints="s3://tasks", state="checkpoints",
)  # fmt: skip


def pod(
    scratch: Scratch, tmp_path: Path, order: Order, result: Path, **environ: str
) -> subprocess.Popen[str]:
    """Run `perdure work --run` with this order, and return its process."""
    (tmp_path / "order/contexts").mkdir(parents=True)
    (tmp_path / "order/order.json").write_bytes(encode(order))
    (tmp_path / "order/contexts/1").write_text("Do it.")
    words = [
        sys.executable,
        "-m",
        "perdure",
        "work",
        "--run",
        "--order",
        str(tmp_path / "order"),
        "--result",
        str(result),
        "--grace",
        "4",
    ]
    env = {**scratch.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ}
    return subprocess.Popen(words, cwd="/", env=env, stderr=subprocess.PIPE, text=True)


def test_a_store_that_is_silent_keeps_no_pod_beyond_its_grace(
    scratch: Scratch, tmp_path: Path
) -> None:
    """The main thread waits for a silent store in a client library, where Python handles no signal.
    SIGTERM still ends the pod in time, with a result."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody-at-all", "AWS_SECRET_ACCESS_KEY": "nothing-at-all",
        }  # fmt: skip
        with pod(scratch, tmp_path, ORDER, tmp_path / "message", **environ) as started:
            silent.settimeout(180)
            asked, _ = silent.accept()
            assert select.select([asked], [], [], 180)[0]
            started.terminate()
            _, log = started.communicate(timeout=180)
            asked.close()
    result = trusted_result((tmp_path / "message").read_bytes(), 1, started.returncode)
    assert result is not None and result.outcome.kind is OutcomeKind.LOST, (started.returncode, log)
    assert "did not end within" in result.outcome.detail and not result.saved


def test_a_result_that_cannot_be_written_leaves_the_exit_code(
    scratch: Scratch, tmp_path: Path
) -> None:
    """If the termination message cannot be written, the exit code still says how the attempt ended,
    and the log says why there is no message."""
    (tmp_path / "file").touch()
    order = changed(ORDER, checkpoints=f"file://{tmp_path}/file/store")
    with pod(scratch, tmp_path, order, tmp_path / "file/message") as started:
        _, log = started.communicate(timeout=180)
    assert started.returncode == 75 and "the result cannot be written" in log, log


BROKEN = """from perdure.agents.claude.driver import ClaudeDriver


class Driver(ClaudeDriver):
    name = "broken"

    def locate(self, environ):
        raise KeyError(environ["DEPLOY_TOKEN"])
"""


def test_what_nobody_foresaw_leaves_a_result(scratch: Scratch, tmp_path: Path) -> None:
    """A driver from another package fails with an unknown error. The result says what failed and
    where, and the log has the details. Neither has a secret."""
    site, secret = tmp_path / "site", "hunter-two-of-all"
    (site / "broken-1.0.dist-info").mkdir(parents=True)
    (site / "broken-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"
    )
    (site / "broken-1.0.dist-info/entry_points.txt").write_text(
        "[perdure.drivers]\nbroken = broken_driver:Driver\n"
    )
    (site / "broken_driver.py").write_text(BROKEN)
    (tmp_path / "secrets/credentials").mkdir(parents=True)
    (tmp_path / "secrets/credentials/DEPLOY_TOKEN").write_text(secret)
    order = changed(ORDER, spec=replace(ORDER.spec, agent="broken"), checkpoints="", state="volume")
    with pod(
        scratch,
        tmp_path,
        order,
        tmp_path / "message",
        PYTHONPATH=os.pathsep.join([str(site), *sys.path]),
    ) as started:
        _, log = started.communicate(timeout=180)
    result = trusted_result((tmp_path / "message").read_bytes(), 1, started.returncode)
    assert result is not None and (result.outcome.kind, started.returncode) == (
        OutcomeKind.FAILED,
        1,
    ), log
    assert (
        result.outcome.detail
        == "perdure itself failed: KeyError in broken_driver.py, line 8; the pod's log has more"
    )
    assert "Traceback" in log and "in _perform_order" in log
    assert secret not in log and secret not in (tmp_path / "message").read_text()


def test_a_volume_that_cannot_be_used_leaves_a_result(scratch: Scratch, tmp_path: Path) -> None:
    """The container's entrypoint fails because a file has the path of perdure's directory on the
    volume. The result says so, and nothing begins."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/perdure").write_text("somebody else's")
    work = [
        "perdure",
        "work",
        "--run",
        "--order",
        str(tmp_path),
        "--result",
        str(tmp_path / "message"),
    ]
    words = [
        sys.executable,
        "-m",
        "perdure",
        "entrypoint",
        "--volume",
        str(tmp_path / "volume"),
        "--new",
        "--agent",
        "claude",
        "--",
        *work,
    ]
    env = {**scratch.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("PERDURE_STATE", "PERDURE_ROOT"):
        env.pop(name, None)
    done = subprocess.run(words, cwd="/", env=env, capture_output=True, text=True)
    result = trusted_result((tmp_path / "message").read_bytes(), 1, done.returncode)
    assert result is not None and result.outcome.kind is OutcomeKind.CONFIG_ERROR, done.stderr
    assert "Not a directory" in result.outcome.detail and not result.outcome.began


def test_an_end_that_is_asked_for_before_the_command_is_there(tmp_path: Path) -> None:
    """SIGTERM arrives while the first process of a container waits for its volume. The signal is
    passed on to the command that starts later."""
    volume = tmp_path / "volume"
    entry = [
        sys.executable,
        "-m",
        "perdure",
        "entrypoint",
        "--volume",
        str(volume),
        "--new",
        "--wait",
        "180",
    ]
    words = ["unshare", *SPACES, *entry, "--", "sh", "-c", "while :; do sleep 0.1; done"]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": os.environ["TMPDIR"],
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(words, cwd="/", env=env) as started:
        first = int(
            until(
                lambda: (
                    Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()[:1]
                ),
                "it began",
            )[0]
        )

        def keeps_back() -> bool:
            # For a moment before it executes perdure, `unshare` blocks the signal, too.
            if Path(f"/proc/{first}/cmdline").read_bytes().startswith(b"unshare"):
                return False
            line = next(
                line
                for line in Path(f"/proc/{first}/status").read_text().splitlines()
                if line.startswith("SigBlk")
            )
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))

        try:
            until(keeps_back, "the first process keeps SIGTERM back")
            os.kill(first, signal.SIGTERM)
            volume.mkdir()
            assert started.wait(timeout=180) == 143
        finally:
            started.kill()


def test_an_older_pod_that_has_published_nothing_yet_is_fenced(
    scratch: Scratch, tmp_path: Path, agents: dict[str, Path]
) -> None:
    """The next attempt's pod takes the run over in the store before it looks for checkpoints, even
    if there are none. The older pod tries to publish after that, and is refused."""
    environ = {
        **scratch.environ,
        "PERDURE_CLAUDE": str(agents["claude"]),
        "PERDURE_STATE": str(tmp_path / "new"),
    }
    new = wiring.open_engine(load(environ, Path("/")), environ)
    environ["PERDURE_STATE"] = str(tmp_path / "old")
    old = wiring.open_engine(load(environ, Path("/")), environ)
    url = f"file://{tmp_path}/store"
    order = changed(ORDER, attempt=2, checkpoints=url)
    perform_order(replace(new, stopping=lambda: True), order, ("Do it.",))
    term = open_store(url).term(order.run_id)
    assert term is not None and term.owner == machine(new.state)
    stopped = replace(old, stopping=lambda: True)
    perform_order(stopped, changed(ORDER, checkpoints="", state="volume"), ("Do it.",))
    assert "taken over by" in CheckpointPublisher(old, url, SecretOptions()).refused(
        old.store.get(order.run_id)
    )


@pytest.mark.parametrize("value", ["postgres://ada:swordfish-1@db/x", "amqp://:swordfish-1@mq"])
def test_a_password_in_an_address_is_a_secret(value: str) -> None:
    """An address is shown without its password."""
    assert Secrets(agent={"DATABASE_URL": value}).values() == ["swordfish-1"]
    assert Secrets(agent={"WHERE": "https://db.example.com:8443/x"}).values() == []


def test_who_has_a_key_is_no_secret_in_a_pod() -> None:
    """The key id of a store, and other values beside a key, may be ordinary words, so they are not
    redacted. A value that looks like a key is redacted."""
    store = {
        "AWS_ACCESS_KEY_ID": "checkpoints",
        "AWS_SECRET_ACCESS_KEY": "swordfish",
        "AWS_BUCKET": "checkpoints-of-all-the-teams",
    }
    git = {"PERDURE_GIT_TOKEN": "swordfish-2", "PERDURE_GIT_TOKEN_USER": "gitlab-ci-token"}
    assert sorted(Secrets(store=store, git=git).values()) == ["swordfish", "swordfish-2"]
    assert Secrets(store={"AWS_ACCESS_KEY_ID": "AKIAQ7W2N5T8V1X4B6KD"}).values() == [
        "AKIAQ7W2N5T8V1X4B6KD"
    ]
