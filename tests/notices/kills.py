"""A campaign: the sender of notices is killed repeatedly, at random moments and at the moment when
the receiver has got a message. Each notice arrives, and duplicates have the same id. A browser
shows each push message once, because a duplicate replaces the first one.

make notify-kills N=200
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from perdure import store as stores
from perdure.engine.notices.push import PushSender
from perdure.model import Condition, Decision, Outcome, OutcomeKind, RunState
from perdure.model.notices import NoticeState
from perdure.protocols import Ending
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import claimed, submit
from tests.notices.pushing import PushService, subscribe
from tests.notices.receivers import SECRET, Hook, Post
from tests.patience import PATIENCE_S

CONFIG = """
[serve]
push_contact = "ops@example.com"
push_hosts = ["{push}"]
[notify.hook]
url = "{hook}"
secret_file = "{home}/secret"
events = ["done", "failed", "needs_you"]
[notify.post]
server = "{post}"
from = "perdure@example.com"
to = ["ada@example.com"]
"""
DONE = Ending(
    outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=RunState.SUCCEEDED)
)
ASKS = Ending(
    outcome=Outcome(kind=OutcomeKind.NEEDS_INPUT),
    decision=Decision(
        state=RunState.FAILED,
        reason="needs_input: which one?",
        condition=Condition(type="needs_person", message="which one?", at=1),
    ),
)


class Scene:
    """A state directory with runs that end, two receivers, and a sender that is killed."""

    def __init__(self, home: Path) -> None:
        self.home, self.hook, self.post = home, Hook(), Post()
        self.push = PushService(home)
        self.state = home / "state"
        (home / "secret").write_text(SECRET)
        config = home / ".config/perdure/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(
            CONFIG.format(hook=self.hook.url, post=self.post.url, home=home, push=self.push.host)
        )
        self.environ = {
            "PATH": os.environ["PATH"], "HOME": str(home), "PERDURE_STATE": str(self.state), "PERDURE_DISK_BALLAST": "0",
            "PERDURE_ROOT": str(home / "root"), "SSL_CERT_FILE": str(self.push.file),
        }  # fmt: skip
        self.store: SqlStore = stores.open(self.state / "perdure.db")
        self.store.put_notices(None, 0, ())
        key = PushSender(state=self.state, contact="ops@example.com").server_key()
        subscribe(self.store, key, self.push, events=["done", "failed", "needs_you"])
        self.arrived: Counter[str] = Counter()
        self.process: subprocess.Popen[str] | None = None
        self.ended = 0

    def end_runs(self, count: int) -> None:
        for _ in range(count):
            self.ended += 1
            self.store.finish(
                claimed(self.store, submit(self.store)), ASKS if self.ended % 2 else DONE
            )

    def start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.notices.sender"], env=self.environ, text=True,
            stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return self.process

    def kill(self, *_: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(PATIENCE_S)
            if self.process.stdout is not None:
                self.process.stdout.close()

    def is_told(self) -> bool:
        found = self.store.notices(10_000)
        return len(found) == 3 * self.ended and all(
            each.state is NoticeState.SENT for each in found
        )

    def tell_all(self) -> None:
        """Let a sender run undisturbed until every notice was sent."""
        self.start()
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not self.is_told():
            assert time.monotonic() < deadline, [each for each in self.store.notices() if each.state != "sent"][:3]  # fmt: skip
            time.sleep(0.02)
        self.kill()

    def check(self) -> dict[str, int]:
        """Check that no notice was lost. Return for each channel the number of messages that came
        more than once."""
        ids = {each.id for each in self.store.notices(10_000) if each.channel == "hook"}
        assert set(self.hook.seen) == ids and len(ids) == self.ended
        mails = {f"<{each.id}@example.com>" for each in self.store.notices(10_000) if each.channel == "post"}  # fmt: skip
        assert set(self.post.seen) == mails and len(mails) == self.ended
        self.take()
        pushed = {
            each.id for each in self.store.notices(10_000) if each.channel.startswith("push:")
        }
        assert set(self.arrived) == pushed and len(pushed) == self.ended and not self.push.wrong
        assert max(self.arrived.values()) == 1, "a browser that is offline gets a message once"
        return {
            "push messages posted twice": sum(many - 1 for many in self.push.topics.values()),
            "push messages shown twice": sum(many - 1 for many in self.arrived.values()),
            "webhooks twice": sum(many - 1 for many in self.hook.seen.values()),
            "mails twice": sum(many - 1 for many in self.post.seen.values()),
        }

    def take(self) -> None:
        """Let the browser be online for a moment, so that it takes the waiting messages."""
        self.arrived.update(each["id"] for each in self.push.delivered())

    def close(self) -> None:
        self.kill()
        self.push.close()
        self.hook.close()
        self.post.close()
        self.store.close()


@contextmanager
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="pn") as home, closing(Scene(Path(home))) as found:
        yield found


def kill_at(found: Scene, moment: str, seed: random.Random) -> None:
    """Kill the sender once: after a random time; when the webhook has the message, before or after
    its answer; or when the mail server or the push service has the message."""
    if moment == "any time":
        found.start()
        assert found.process is not None and found.process.stdout is not None
        if seed.random() < 0.8:
            found.process.stdout.readline()  # The sender is ready.
        time.sleep(seed.random() * 0.15)
        found.kill()
        return
    over = threading.Event()

    def now(*_: int) -> None:
        if not over.is_set():
            found.kill()
            over.set()

    if moment == "mail":
        found.post.taken = now
    elif moment.startswith("push"):
        setattr(found.push, moment.split()[1], now)
    else:
        setattr(found.hook, moment, now)
    found.start()
    assert over.wait(PATIENCE_S)
    found.hook.before = found.hook.after = lambda number: None
    found.post.taken = lambda: None
    found.push.before = found.push.after = lambda: None


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = random.Random(sys.argv[2] if len(sys.argv) > 2 else 1)
    moments = ("any time", "before", "after", "mail", "push before", "push after")
    kills: dict[str, Any] = dict.fromkeys(moments, 0)
    with scene() as found:
        for _ in range(count):
            found.end_runs(2)
            moment = seed.choice(list(kills))
            kill_at(found, moment, seed)
            kills[moment] += 1
        found.tell_all()
        print(json.dumps({"kills": kills, "runs": found.ended, **found.check()}))


if __name__ == "__main__":
    main()
