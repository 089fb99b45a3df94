"""The browsers of people as channels of the notifier. Each browser gets only notices about runs
that its person may see, and none about what happened before it was added."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from perdure.engine.notices.push import DeviceGone, PushSender
from perdure.engine.notices.senders import NoticeRefused
from perdure.errors import StoreError
from perdure.model import TaskRun
from perdure.model.devices import PREFIX, PushDevice
from perdure.model.notices import Channel, Notice
from perdure.protocols import DeviceStore
from perdure.rules.access import limits_of


class Devices(Struct, frozen=True):
    """Reads the browsers from the store, and sends notices to them."""

    store: DeviceStore
    sender: PushSender

    def all(self) -> Sequence[PushDevice]:
        """Return the browsers that get messages now. Raises StoreError."""
        return self.store.devices()

    def send(self, notice: Notice) -> None:
        """Send a notice to its browser. Raises NoticeRefused, or DeviceGone if the browser was
        removed."""
        wanted = notice.channel.removeprefix(PREFIX)
        found = [each for each in self.store.devices() if each.id == wanted]
        if not found:
            raise DeviceGone(f"{notice.channel} was removed")
        try:
            self.sender.send(found[0], notice)
        except DeviceGone:
            self.store.remove_device(wanted)
            raise
        except NoticeRefused:
            raise
        except StoreError as error:  # The key cannot be used.
            raise NoticeRefused(str(error)) from error
        except Exception as error:
            # One browser must not keep others from getting messages. The error of a library may
            # contain the message, so only its type is reported.
            raise NoticeRefused(f"{notice.channel} failed: {type(error).__name__}") from error


def channels_for(devices: Sequence[PushDevice], run: TaskRun, at: int) -> list[Channel]:
    """Return the channels of the browsers whose person may see a run, and that were there at the
    time `at`."""
    place = run.workspace.repo if run.workspace is not None else ""
    repo = run.spec.repo or place
    found = []
    for device in devices:
        limits = limits_of(device.repositories, device.labels)
        if device.added <= at and limits.see(repo, run.spec.labels):
            with suppress(ValueError):  # Wishes that this version does not know.
                found.append(device.channel)
    return found
