"""Gitea and Forgejo, on the small forge. `make test-forge` also runs the suite on a real Gitea."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.errors import ForgeDenied
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.state import Access
from tests.forgeapi.places import REPOSITORY, TOKENS, SmallPlace, small_place
from tests.forgeapi.suite import ForgeSuite
from tests.servers.forge import gitea


class TestGitea(ForgeSuite):
    @pytest.fixture(params=[Forge.GITEA, Forge.FORGEJO])
    def place(self, request: pytest.FixtureRequest) -> Iterator[SmallPlace]:
        with small_place(request.param, gitea) as found:
            yield found

    def test_only_administrators_are_told_permissions(self, place: SmallPlace) -> None:
        """For a login that is not an administrator, the error says what to do. Every login may ask
        for its own permissions."""
        place.repo.access["cid"] = "write"
        with pytest.raises(
            ForgeDenied,
            match=r"shows the permissions in shop/prices only to its administrators; cid is",
        ) as denied:
            place.with_token(TOKENS["cid"]).permission(REPOSITORY, "ben")
        assert "administrator" in denied.value.hint
        assert place.with_token(TOKENS["cid"]).permission(REPOSITORY, "cid") is Access.WRITE

    def test_failed_deliveries_are_not_told(self, place: SmallPlace) -> None:
        """Gitea has no call that lists failed deliveries, so the result is None and no request is
        sent."""
        assert place.forge.failed_deliveries(REPOSITORY, "/webhooks/shop", since=1) is None
        assert not place.small.requests
