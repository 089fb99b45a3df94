"""perdure's client on a real Gitea: the suite for every forge, and behavior that the small forge
does not have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.errors import ForgeDenied
from perdure.model.forge.state import Access, IssueRef
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

    def test_who_chose_the_agent(self, real: GiteaPlace) -> None:
        """The timeline names the last person who added a label, assigned or reopened the issue,
        even if the issue was created with label and assignee."""
        ref = IssueRef(
            real.repository, real.issue("ben", "By ben", labels=["choosing"], assignees=["dev-bot"])
        )
        assert (
            real.forge.chosen_by(ref, label="choosing")
            == real.forge.chosen_by(ref, assignee="Dev-Bot")
            == "ada"
        )
        assert (
            real.forge.chosen_by(ref, label="another")
            == real.forge.chosen_by(ref, assignee="cid")
            == real.forge.chosen_by(ref, reopened=True)
            == ""
        )
        label = real._label("choosing")
        real._do("DELETE", f"/issues/{ref.number}/labels/{label}", by="ada")
        real._do("POST", f"/issues/{ref.number}/labels", {"labels": [label]}, "ben")
        assert real.forge.chosen_by(ref, label="choosing") == "ben"
        real.end(ref)
        real.reopen(ref)
        assert real.forge.chosen_by(ref, reopened=True) == "ada"
        whole = {"title": "At once", "labels": [label], "assignees": ["dev-bot"]}
        ref = IssueRef(real.repository, real._do("POST", "/issues", whole, "ben")["number"])
        assert (
            real.forge.chosen_by(ref, label="choosing")
            == real.forge.chosen_by(ref, assignee="dev-bot")
            == "ben"
        )

    def test_only_administrators_are_told_permissions(self, real: GiteaPlace) -> None:
        """For a login with only write access, the error says what to do. Every login may ask for
        its own permissions."""
        writer = real.with_token(real.gitea.tokens["ben"])
        with pytest.raises(
            ForgeDenied, match=r"only to its administrators; ben is not one"
        ) as denied:
            writer.permission(real.repository, "ada")
        assert "administrator" in denied.value.hint
        assert writer.permission(real.repository, "ben") is Access.WRITE
