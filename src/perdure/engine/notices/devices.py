"""Makes people's browsers channels of the notifier. A browser gets only notices about runs that its
person may see. It gets no notices about what happened before it was added."""

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
        """Return all people's browsers that have not expired. Raises StoreError."""
        return self.store.devices()

    def send(self, notice: Notice) -> None:
        """Send a notice to the browser that its channel names. Raises NoticeRefused, or DeviceGone
        if the browser was removed."""
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
        except StoreError as error:  # The key that signs messages is unusable.
            raise NoticeRefused(str(error)) from error
        except Exception as error:
            # A failure of one browser must not keep others from getting messages. The text of a
            # library's error may contain the message, so only the error's type is reported.
            raise NoticeRefused(f"{notice.channel} failed: {type(error).__name__}") from error


def channels_for(devices: Sequence[PushDevice], run: TaskRun, at: int) -> list[Channel]:
    """Return the channels of the browsers that may get a notice about the run. The browser must
    have been added by the time `at`, and its person must be allowed to see the run."""
    place = run.workspace.repo if run.workspace is not None else ""
    repo = run.spec.repo or place
    found = []
    for device in devices:
        limits = limits_of(device.repositories, device.labels)
        if device.added <= at and limits.see(repo, run.spec.labels):
            # A device is skipped if the person's choices contain a value that this version does not
            # know.
            with suppress(ValueError):
                found.append(device.channel)
    return found
