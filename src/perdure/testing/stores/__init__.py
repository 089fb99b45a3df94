"""What every store must do: subclass `StoreConformance` and give a fixture `store` that returns an
empty one.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self): ...

Each test is one promise of a protocol in `perdure.protocols`: `RunStore`, `SessionStore`,
`PlanStore`, `InboxStore` and the others.
"""

from __future__ import annotations

from perdure.testing.stores.accounts import Accounts
from perdure.testing.stores.arriving import Arriving
from perdure.testing.stores.attempts import Performing, Sessions
from perdure.testing.stores.boards import Boards
from perdure.testing.stores.checkpoints import Checkpoints
from perdure.testing.stores.claims import Adopting, Claiming, Fencing
from perdure.testing.stores.counting import Counting
from perdure.testing.stores.inbox import Inbox
from perdure.testing.stores.opening import Opening
from perdure.testing.stores.plans import Plans
from perdure.testing.stores.postings import Postings
from perdure.testing.stores.runs import Adding, Finding, Persons
from perdure.testing.stores.tokens import Tokens

__all__ = ["StoreConformance"]


class StoreConformance(
    Adding,
    Finding,
    Claiming,
    Adopting,
    Fencing,
    Performing,
    Persons,
    Opening,
    Checkpoints,
    Arriving,
    Sessions,
    Plans,
    Inbox,
    Postings,
    Accounts,
    Boards,
    Tokens,
    Counting,
):
    """Every promise of the protocols. The fixture `store` must be empty for each test."""
