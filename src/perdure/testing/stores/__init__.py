"""The conformance suite for stores: subclass `StoreConformance` and supply a fixture `store` that
returns an empty store.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self): ...

Each test checks one promise of a protocol in `perdure.protocols`: `RunStore`, `SessionStore`,
`PlanStore`, `InboxStore` and the others.
"""

from __future__ import annotations

from perdure.testing.stores.attempts import Performing, SessionSuite
from perdure.testing.stores.boards import BoardSuite, CountSuite
from perdure.testing.stores.checkpoints import Arriving, CheckpointSuite
from perdure.testing.stores.claims import AccountSuite, Adopting, Claiming, Fencing
from perdure.testing.stores.inbox import InboxSuite, PostingSuite
from perdure.testing.stores.plans import PlanSuite
from perdure.testing.stores.requests import Opening, RequestSuite
from perdure.testing.stores.runs import Adding, FindSuite, Persons
from perdure.testing.stores.tokens import TokenSuite

__all__ = ["StoreConformance"]


class StoreConformance(
    Adding,
    FindSuite,
    Claiming,
    Adopting,
    Fencing,
    Performing,
    Persons,
    Opening,
    CheckpointSuite,
    Arriving,
    SessionSuite,
    PlanSuite,
    InboxSuite,
    PostingSuite,
    AccountSuite,
    BoardSuite,
    TokenSuite,
    CountSuite,
    RequestSuite,
):
    """Tests all promises of the store protocols. The fixture `store` must be empty for each
    test."""
