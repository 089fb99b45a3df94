"""Notifies people about runs: by signed webhooks, by mail, and by the services that Apprise knows.

`Notifier` runs beside a pool. It follows the audit trail into the outbox, and sends the notices
that are due.
"""

from __future__ import annotations

from perdure.engine.notices.notifier import Notifier

__all__ = ["Notifier"]
