"""Browsers that get push messages, in SQL: `perdure.protocols.DeviceStore`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.errors import Conflict
from perdure.store.notices import Notices
from perdure.store.rows import Row, columns_of

if TYPE_CHECKING:
    from perdure.model.devices import PushDevice


class StoredDevices(Notices):
    """Adds the methods of `DeviceStore` to the store."""

    def put_device(self, device: PushDevice) -> None:
        from msgspec.structs import asdict

        from perdure.model.devices import DEVICES_MOST

        with self._write() as write:
            # The token may have been removed since the request was authenticated.
            if write.one("is_signed_in", sha256=device.sign_in, now=write.now) is None:
                raise Conflict("You are not signed in any more", "sign in again")
            write.do("forget_devices", now=write.now)
            others = write.all("other_devices", person=device.person, id=device.id)
            if len(others) >= DEVICES_MOST:
                raise Conflict(
                    f"{DEVICES_MOST} of your devices get messages already, which is the maximum",
                    "remove one of them first",
                )
            write.do("drop_endpoint", endpoint=device.endpoint, id=device.id)
            values = asdict(device) | _limits(device) | {"now": write.now}
            del values["added"]
            write.do("put_device", **values)
            write.audit_action("device_added", device.name)

    def renew_device(self, device: PushDevice) -> bool:
        with self._write() as write:
            row = write.one(
                "renew_device",
                id=device.id,
                sign_in=device.sign_in,
                expires=device.expires,
                now=write.now,
                **_limits(device),
            )
            return row is not None

    def devices(self) -> Sequence[PushDevice]:
        return list(map(_device_of, self._rows("devices", now=self.now())))

    def remove_device(self, device: str) -> bool:
        with self._write() as write:
            row = write.one("remove_device", id=device)
            if row is not None:
                write.audit_action("device_removed", row["name"])
            return row is not None


def _limits(device: PushDevice) -> dict[str, str]:
    return {
        "repositories": json.dumps(device.repositories),
        "labels": json.dumps(device.labels),
    }


def _device_of(row: Row) -> PushDevice:
    from perdure.model.devices import PushDevice

    values = columns_of(row, PushDevice.__struct_fields__)
    values["repositories"] = tuple(json.loads(row["repositories"]))
    values["labels"] = tuple(json.loads(row["labels"]))
    return PushDevice(**values)
