"""Notifies people about runs: by signed webhooks, by mail, and by the services that Apprise
supports.

`Notifier` runs in a thread next to a worker pool. It reads the audit trail, stores notices in the
outbox, and sends those that are due.
"""

from __future__ import annotations

from perdure.engine.notices.notifier import Notifier

__all__ = ["Notifier"]
