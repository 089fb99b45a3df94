"""The conformance suite for stores: subclass `StoreConformance` and supply a fixture `store` that
returns an empty store.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self): ...

Each test checks one promise of a protocol in `perdure.protocols`: `RunStore`, `SessionStore`,
`PlanStore`, `InboxStore` and the others.
"""

from __future__ import annotations

from perdure.testing.stores.accounts import AccountSuite
from perdure.testing.stores.arrivals import Arriving
from perdure.testing.stores.attempts import Performing, SessionSuite
from perdure.testing.stores.boards import BoardSuite
from perdure.testing.stores.checkpoints import CheckpointSuite
from perdure.testing.stores.claims import Adopting, Claiming, Fencing
from perdure.testing.stores.counts import CountSuite
from perdure.testing.stores.inbox import InboxSuite
from perdure.testing.stores.loans import Opening
from perdure.testing.stores.plans import PlanSuite
from perdure.testing.stores.postings import PostingSuite
from perdure.testing.stores.requests import RequestSuite
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
