"""What every part of the service works with: made by `perdure serve`, handed to the API, the dashboard and the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.attempt import Engine
from perdure.attempt.engine import Store
from perdure.config import Settings
from perdure.web.principal import Principals


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`engine` is for the verbs that act, `store` is for looking: a connection of its own, which holds up no writer."""

    engine: Engine
    store: Store
    settings: Settings
    principals: Principals
