"""perdure's client on a real Gitea: the promises of every forge, and what only a real one shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.errors import ForgeDenied
from perdure.forges.standing import Access
from tests.forgeapi.suite import ForgeSuite
from tests.gitea.place import GiteaPlace
from tests.servers.gitea.server import Gitea

pytestmark = pytest.mark.forge


@pytest.fixture(scope="module")
def real(gitea: Gitea) -> Iterator[GiteaPlace]:
    found = GiteaPlace(gitea)
    yield found
    found.close()


class TestRealGitea(ForgeSuite):
    @pytest.fixture
    def place(self, real: GiteaPlace) -> GiteaPlace:
        return real

    def test_only_administrators_are_told_permissions(self, real: GiteaPlace) -> None:
        """A login that may only write is told what to do about it; of itself it may always ask."""
        writer = real.with_token(real.gitea.tokens["ben"])
        with pytest.raises(ForgeDenied, match=r"to its administrators only, and ben is none") as denied:
            writer.permission(real.repository, "ada")
        assert "administrator" in denied.value.hint
        assert writer.permission(real.repository, "ben") is Access.WRITE
