"""From a forge's raw webhook to the prompt: each of the four forges gives exactly the right text,
once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.model import RunState
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge
from perdure.model.forge.postings import Posting
from tests.dispatching.office import Office
from tests.dispatching.test_reconciling import DEV, asked
from tests.forges import minimal, payloads
from tests.forges.minimal import BRANCH, COMMIT, GITHUB_LIKE, Sent
from tests.servers.forge import gitlab

FORGES = list(Forge)
HANDLED, IGNORED, WAITS = DeliveryState.HANDLED, DeliveryState.IGNORED, DeliveryState.RECEIVED
every_forge = pytest.mark.parametrize("forge", FORGES)
HUNK = "@@ -10,3 +10,4 @@ def total\n     a = 1\n-    b = 2\n+    b = 3"


def send(office: Office, sent: Sent) -> Delivery:
    return office.deliver(*sent)


def begun(office: Office, forge: Forge) -> None:
    """Make a run whose agent was assigned, and whose first attempt has ended."""
    assert send(office, minimal.assigned(forge)).state is HANDLED
    office.end(office.claim())


def pushed(office: Office, commit: str = COMMIT) -> None:
    """Record that perdure has pushed a commit of the run."""
    run = office.run()
    assert office.engine.store.hold_posting(run.id, 60.0) is not None
    office.engine.store.put_posting(Posting(run=run.id, commit=commit, attempt=run.attempt))


def unmarked(prompt: str) -> str:
    """Return a prompt without the marks around other people's text, which are random for each
    prompt."""
    return re.sub(
        r"<<<FORGE-[0-9a-f]{16}\s|\sFORGE-[0-9a-f]{16}>>>", "", prompt.partition("\n\n")[2]
    )


# --- checks
# ------------------------------------------------------------------------------------------------------


@every_forge
@pytest.mark.parametrize("sender", ["dev-bot", "github-actions[bot]", "mallory"])
def test_a_red_workflow_of_what_the_run_pushed(office: Office, forge: Forge, sender: str) -> None:
    """All deliveries about one failed workflow become one update, whoever they name as the author.
    Usually this is the agent itself, because it has pushed."""
    begun(office, forge)
    pushed(office)
    states = [send(office, sent).state for sent in minimal.red(forge, sender)]
    assert states.count(HANDLED) == 1 and set(states) <= {HANDLED, IGNORED}
    (prompt,) = office.prompts()[1:]
    assert f"{BRANCH} has failed" in prompt
    assert "There is no log: perdure has no token to ask the forge with." in prompt
    # The name of what failed, in the delivery that names the branch: the job in a check run, the
    # workflow in a workflow run, nothing in a pipeline.
    names = {Forge.GITHUB: "build", Forge.GITEA: "CI (http", Forge.FORGEJO: "ci.yml (http"}
    assert names.get(forge, "") in prompt


@every_forge
def test_a_red_workflow_that_comes_together(office: Office, forge: Forge) -> None:
    """Events during an agent's turn become one update afterwards."""
    begun(office, forge)
    pushed(office)
    send(office, minimal.commented(forge, "Please also test it."))
    claim = office.claim()
    sent = [send(office, each) for each in minimal.red(forge, "dev-bot")]
    # Without a forge token, the branch of a status of Gitea is unknown.
    waits = [each for each in sent if each.intent is not None and each.intent.branch]
    assert waits and {each.state for each in waits} == {WAITS}
    office.end(claim)
    office.dispatcher.round()
    assert {office.delivery(each.number).state for each in waits} == {HANDLED}
    assert len(office.prompts()) == 3 and office.prompts()[2].count("has failed") == 1


@every_forge
def test_checks_of_others_cost_nothing(office: Office, forge: Forge) -> None:
    """A failed check of another commit, another branch or a fork reaches the agent only if the
    author of that commit may instruct it."""
    begun(office, forge)
    pushed(office)
    strange = minimal.red(forge, "mallory", commit="5" * 40)
    strange += minimal.red(forge, "mallory", branch="main") + minimal.red(
        forge, "dev-bot", branch="perdure/dev-5"
    )
    strange += minimal.red(forge, "dev-bot", commit="")
    found = [send(office, sent) for sent in strange]
    assert {each.state for each in found} == {IGNORED} and len(office.prompts()) == 1
    reasons = {each.reason for each in found}
    assert (
        f"{'5' * 12} is not a commit of {office.run().name}, and dev does not work for mallory"
        in reasons
    )
    *_, last = minimal.red(forge, "ada", commit="5" * 40)
    assert send(office, last).state is HANDLED, "a person pushed onto it, who may"


@every_forge
def test_agent_and_checks_play_no_ping_pong(make: Callable[..., Office], forge: Forge) -> None:
    """After a limited number of failed repairs in a row the agent gets no more failed checks, and a
    person is needed. A comment by a person continues the run and restarts the count."""
    office = make()
    office.rules = (replace(office.rules[0], ci_attempts=2),)
    office.dispatcher._rules = office.rules
    begun(office, forge)
    for number in range(2):
        pushed(office, f"{number:040x}")
        assert (
            send(office, minimal.red(forge, "dev-bot", commit=f"{number:040x}")[-1]).state
            is HANDLED
        )
        office.end(office.claim())
    pushed(office, "9" * 40)
    last = send(office, minimal.red(forge, "dev-bot", commit="9" * 40)[-1])
    assert last.state is IGNORED and "after each of 2 attempts to repair them" in last.reason
    (condition,) = office.run().conditions
    assert (condition.type, condition.message) == ("needs_person", last.reason)
    assert send(office, minimal.commented(forge, "Try the other way.")).state is HANDLED
    assert office.run().conditions == ()
    office.end(office.claim())
    pushed(office, "8" * 40)
    assert send(office, minimal.red(forge, "dev-bot", commit="8" * 40)[-1]).state is HANDLED


# --- comments on lines
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.GITLAB])
def test_a_comment_on_a_line(office: Office, forge: Forge) -> None:
    """The agent gets a comment on a line of a change with file, line and, if the forge sends it,
    the diff. All of it is marked as text from outside."""
    begun(office, forge)
    assert send(office, minimal.on_a_line(forge, "Why 3?", hunk=HUNK)).state is HANDLED
    prompt = office.prompts()[1]
    quoted = "> @@ -10,3 +10,4 @@ def total\n>      a = 1\n> -    b = 2\n> +    b = 3\n"
    said = f"src/total.py:12:\n{quoted if forge is Forge.GITHUB else ''}Why 3?"
    assert unmarked(prompt).endswith(said)
    inside = re.search(r"<<<(FORGE-[0-9a-f]{16})\n(.*)\n\1>>>", prompt, re.DOTALL)
    assert inside is not None and inside[2] == said


def of_the_story(forge: str, name: str, words: dict[str, str]) -> dict[str, Any]:
    """Return a recorded body, with its names replaced by those of the story."""
    text = payloads.raw(forge, name).decode()
    for before, now in words.items():
        assert before in text, before
        text = text.replace(before, now)
    found: dict[str, Any] = json.loads(text)
    return found


GITHUBS = {"Codertocat/Hello-World": "shop/web", '"changes"': f'"{BRANCH}"'}
RECORDED_COMMENTS = [
    pytest.param(
        Forge.GITHUB,
        "pull_request_review_comment",
        ("github", "pull_request_review_comment_created", GITHUBS | {'"Codertocat"': '"ada"'}),
        "README.md:1:\n> @@ -1 +1 @@\n> -# Hello-World\nMaybe you should use more emoji on this line.",
        id="github",
    ),
    pytest.param(
        Forge.GITLAB,
        "Note Hook",
        (
            "gitlab",
            "review_comment_create",
            {"gitlab-org/hello-world": "shop/web", '"sytses"': '"ada"', '"feature"': f'"{BRANCH}"'},
        ),
        "README.md:1:\ncheck spelling",
        id="gitlab",
    ),
]


@pytest.mark.parametrize(("forge", "event", "body", "said"), RECORDED_COMMENTS)
def test_a_recorded_comment_on_a_line(
    office: Office, forge: Forge, event: str, body: tuple[str, str, dict[str, str]], said: str
) -> None:
    """A body that a forge really sent becomes one prompt with the comment's file, line and text."""
    begun(office, forge)
    assert office.deliver(forge, event, of_the_story(*body)).state is HANDLED
    office.dispatcher.round()
    (prompt,) = office.prompts()[1:]
    assert unmarked(prompt).endswith(said)


GITEAS = {"ada/web": "shop/web"}


def test_a_recorded_red_check_of_what_the_run_pushed(office: Office) -> None:
    """A recorded body that names the agent's own login becomes one update, however often it comes.
    (A status of Gitea names no branch: see the tests with an API.)"""
    begun(office, Forge.GITHUB)
    pushed(office, "ec26c3e57ca3a959ca5aad62de7213c562f8c821")
    words = GITHUBS | {'"Codertocat"': '"dev-bot"'}
    body = of_the_story("github", "check_run_completed", words)
    states = [office.deliver(Forge.GITHUB, "check_run", body).state for _ in range(2)]
    assert states[0] is HANDLED and states[1] in (HANDLED, IGNORED)
    (prompt,) = office.prompts()[1:]
    assert f"{BRANCH} has failed" in prompt and "Octocoders-linter" in prompt


ISSUES = {"Codertocat/Hello-World": "shop/web", '"number":1': '"number":4'}


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.GITEA, Forge.FORGEJO])
def test_a_recorded_unassignment(office: Office, forge: Forge) -> None:
    """A recorded unassignment stops the run once, and gives no prompt."""
    begun(office, forge)
    if forge is Forge.GITHUB:
        event = "issues"
        body = of_the_story("github", "issues_unassigned", ISSUES | {'"Codertocat"': '"dev-bot"'})
        # In the recorded body a person unassigns themselves; here ada unassigns the agent.
        body["sender"]["login"] = "ada"
    else:
        event = "issue_assign"
        words = GITEAS | {'"number": 1': '"number": 4'}
        body = of_the_story("gitea-1.26", "issue_assign.unassigned", words)
    states = [office.deliver(forge, event, body).state for _ in range(2)]
    assert states[0] is HANDLED and states[1] in (HANDLED, IGNORED)
    assert [each.type for each in office.run().conditions] == ["withdrawn"]
    assert len(office.prompts()) == 1


# --- edits
# -------------------------------------------------------------------------------------------------------

BEFORE = "One.\nTwo.\nThree.\nFour.\nFive.\nSix.\nSeven."
AFTER = "One.\nTwo.\nThree.\nFour, rounded half to even.\nFive.\nSix.\nSeven."


@every_forge
def test_an_issue_is_edited(office: Office, forge: Forge) -> None:
    """Only the difference of an edited issue is reported. An edit without a change of text is
    ignored."""
    begun(office, forge)
    told = send(
        office, minimal.edited(forge, BEFORE, AFTER, title="Rounding up", title_before="Rounding")
    )
    assert told.state is HANDLED
    said = unmarked(office.prompts()[1])
    assert "ada has edited what it says" in said
    assert "Title, before: Rounding\nTitle, now: Rounding up" in said
    assert (
        "- Four.\n+ Four, rounded half to even." in said
        and "One." not in said
        and "Seven." not in said
    )
    assert send(office, minimal.edited(forge, AFTER, f"{AFTER}  \n")).state is IGNORED
    for stranger in ("mallory", "dev-bot"):
        assert send(office, minimal.edited(forge, BEFORE, AFTER, sender=stranger)).state is IGNORED
    assert len(office.prompts()) == 2


@every_forge
def test_a_comment_is_edited(office: Office, forge: Forge) -> None:
    """Only the difference of an edited comment is reported. Comments by perdure, which it edits
    often, and by the agent start nothing."""
    begun(office, forge)
    send(office, minimal.commented(forge, BEFORE))
    office.end(office.claim())
    assert send(office, minimal.comment_edited(forge, BEFORE, AFTER)).state is HANDLED
    said = unmarked(office.prompts()[2])
    assert (
        "ada has edited a comment" in said
        and "- Four.\n+ Four, rounded half to even." in said
        and "One." not in said
    )
    own = "<!-- perdure:task=1 -->\n**dev** is running"
    assert (
        send(office, minimal.comment_edited(forge, own, f"{own}.", sender="perdure", id=5)).state
        is IGNORED
    )
    assert (
        send(office, minimal.comment_edited(forge, own, f"{own}.", sender="ada", id=5)).state
        is IGNORED
    )
    assert (
        send(office, minimal.comment_edited(forge, "a", "b", sender="dev-bot", id=6)).state
        is IGNORED
    )
    assert len(office.prompts()) == 3


def test_a_recorded_edit_of_a_comment(office: Office) -> None:
    """A recorded edit of a comment becomes one prompt with only the difference."""
    begun(office, Forge.GITHUB)
    body = of_the_story("github", "issue_comment_edited", ISSUES | {'"Codertocat"': '"ada"'})
    send(office, minimal.commented(Forge.GITHUB, body["changes"]["body"]["from"]))
    office.end(office.claim())
    assert office.deliver(Forge.GITHUB, "issue_comment", body).state is HANDLED
    (prompt,) = office.prompts()[2:]
    assert unmarked(prompt).endswith(
        "- You are totally right! I'll get this fixed right away.\n"
        "+ You are totally right! I'll get this fixed today."
    )


@every_forge
def test_edits_that_come_together(office: Office, forge: Forge) -> None:
    """If a comment was edited before the agent gets it, the agent gets only its newest version. Two
    edits of an issue become one difference."""
    begun(office, forge)
    send(office, minimal.commented(forge, "Go on.", id=1))
    claim = office.claim()
    send(office, minimal.commented(forge, "Round it up.", id=2))
    send(office, minimal.comment_edited(forge, "Round it up.", "Round it down.", id=2))
    send(office, minimal.edited(forge, "a\nb", "a\nB"))
    send(office, minimal.edited(forge, "a\nB", "A\nB"))
    office.end(claim)
    office.dispatcher.round()
    said = unmarked(office.prompts()[-1])
    assert (
        "Round it down." in said and "Round it up." not in said and "edited a comment" not in said
    )
    assert said.count("has edited") == 1 and "- a\n- b\n+ A\n+ B" in said


@pytest.mark.parametrize("forge", GITHUB_LIKE)
def test_an_approval_with_words(office: Office, forge: Forge) -> None:
    """An approving review with text becomes instructions if its author may give them. One without
    text, or by a stranger, does not."""
    begun(office, forge)
    assert send(office, minimal.approved(forge, "Good, but rename it.")).state is HANDLED
    assert unmarked(office.prompts()[1]).endswith(
        "ada has approved the changes, and says:\n\nGood, but rename it."
    )
    assert send(office, minimal.approved(forge, " ")).state is IGNORED
    assert (
        send(office, minimal.approved(forge, "Good, but delete it.", sender="mallory")).state
        is IGNORED
    )
    assert len(office.prompts()) == 2


def test_an_approval_on_gitlab(office: Office) -> None:
    """GitLab sends the text of an approval as a comment."""
    begun(office, Forge.GITLAB)
    assert send(office, minimal.approved(Forge.GITLAB, "Good, but rename it.")).state is HANDLED


# --- work that is taken back
# -------------------------------------------------------------------------------------


@every_forge
def test_unassigned_and_assigned_again(office: Office, forge: Forge) -> None:
    """An unassigned agent stops, and comments do not start it. After another assignment it
    continues in the same conversation and gets all those comments."""
    send(office, minimal.assigned(forge))
    run = office.run()
    off = send(office, minimal.unassigned(forge))
    assert (off.state, off.reason) == (
        HANDLED,
        f"{run.name} no longer works on it: unassigned by ada",
    )
    assert office.run().state is RunState.CANCELLED
    (condition,) = office.run().conditions
    assert (condition.type, condition.message) == (
        "withdrawn",
        "unassigned by ada; to continue, assign it to dev-bot again, or mention it",
    )
    said = send(office, minimal.commented(forge, "Ben takes it.", id=1))
    assert (said.state, said.reason) == (
        IGNORED,
        f"{run.name} no longer works on it: it gets the comment when it continues",
    )
    again = send(office, minimal.assigned(forge))
    assert (
        again.state is HANDLED
        and office.run().state is RunState.QUEUED
        and office.run().conditions == ()
    )
    assert office.run().id == run.id
    told = unmarked(office.prompts()[1])
    assert told.index("Ben takes it.") < told.index("It was assigned to you by ada.")
    office.end(office.claim())
    send(office, minimal.commented(forge, "Thanks.", id=2))
    assert "Ben takes it." not in office.prompts()[-1], "once"


@every_forge
def test_told_to_stop_after_it_was_unassigned(office: Office, forge: Forge) -> None:
    """A second withdrawal changes nothing about the comments that came since the first one."""
    send(office, minimal.assigned(forge))
    send(office, minimal.unassigned(forge))
    assert send(office, minimal.commented(forge, "Ben takes it.", id=1)).state is IGNORED
    send(office, minimal.commented(forge, "@dev-bot stop", id=2))
    (condition,) = office.run().conditions
    assert condition.message.startswith("stopped by ada")
    send(office, minimal.assigned(forge))
    assert "Ben takes it." in unmarked(office.prompts()[-1])


@every_forge
def test_unassigned_while_the_agent_is_at_work(office: Office, forge: Forge) -> None:
    """The agent of an unassigned run is asked to stop at once. Waiting deliveries are handled only
    after it has ended."""
    send(office, minimal.assigned(forge))
    claim = office.claim()
    waiting = send(office, minimal.commented(forge, "And test it."))
    off = send(office, minimal.unassigned(forge))
    assert (off.state, off.reason) == (WAITS, f"waits: {claim.run.name} is stopping")
    assert office.run().cancel_requested
    changes = len(office.engine.store.history(office.run().id, limit=1000))
    office.dispatcher.round()
    assert len(office.engine.store.history(office.run().id, limit=1000)) == changes, (
        "nothing is done twice"
    )
    office.stop(claim)
    office.dispatcher.round()
    assert office.delivery(off.number).state is HANDLED
    assert (
        office.delivery(waiting.number).reason
        == f"{claim.run.name} no longer works on it: it gets the comment when it continues"
    )
    assert office.run().state is RunState.CANCELLED
    send(office, minimal.commented(forge, "@dev-bot go on", id=3))
    told = unmarked(office.prompts()[-1])
    assert told.index("And test it.") < told.index("@dev-bot go on")


@every_forge
def test_others_are_unassigned(office: Office, forge: Forge) -> None:
    """A run does not stop when another person is unassigned, when another label is removed, or when
    the agent unassigns itself."""
    send(office, minimal.assigned(forge, left=("ben",)))
    assert send(office, minimal.unassigned(forge, "ben", left=("dev-bot",))).state is IGNORED
    send(office, minimal.labelled(forge, "bug"))
    send(office, minimal.unlabelled(forge, "bug", left=()))
    assert send(office, minimal.unassigned(forge, sender="dev-bot")).state is IGNORED
    assert office.run().state is RunState.QUEUED


@every_forge
def test_the_label_that_it_began_by(office: Office, forge: Forge) -> None:
    """A run that a label began stops when the label is removed, and continues when it is added
    again. Other labels have no effect."""
    send(office, minimal.labelled(forge))
    off = send(office, minimal.unlabelled(forge))
    assert (
        off.reason == f"{office.run().name} no longer works on it: the label agent removed by ada"
    )
    assert office.run().state is RunState.CANCELLED
    send(office, minimal.labelled(forge, "help", also=("bug",)))
    assert office.run().state is RunState.CANCELLED
    assert send(office, minimal.labelled(forge, also=("help", "bug"))).state is HANDLED
    assert office.run().state is RunState.QUEUED


@every_forge
def test_another_label_does_not_bring_it_back(office: Office, forge: Forge) -> None:
    """Gitea sends all labels at each change. After a stop, a label that the issue had before does
    not restart the run."""
    send(office, minimal.labelled(forge))
    send(office, minimal.commented(forge, "@dev-bot stop"))
    send(office, minimal.labelled(forge, "bug", also=("agent",)))
    assert office.run().state is RunState.CANCELLED


@every_forge
def test_a_word_to_stop(office: Office, forge: Forge) -> None:
    """`@login stop` stops the run if its author may do that. The same text in a quote, in code,
    within a sentence, or by others does not stop it."""
    begun(office, forge)
    for text in (
        "> @dev-bot stop\nNo!",
        "```\n@dev-bot stop\n```",
        "`@dev-bot stop`",
        "When will @dev-bot stop?",
        "    @dev-bot stop",
    ):
        send(office, minimal.commented(forge, text))
        assert office.run().conditions == (), text
    for author in ("mallory", "dev-bot"):
        assert (
            send(office, minimal.commented(forge, "@dev-bot stop", sender=author)).state is IGNORED
        )
    assert office.run().state is RunState.QUEUED
    stopped = send(
        office, minimal.commented(forge, "Thanks!\n@Dev-Bot, please stop.\nWe do it otherwise.")
    )
    assert (stopped.state, stopped.reason) == (
        HANDLED,
        f"{office.run().name} no longer works on it: stopped by ada",
    )
    assert office.run().state is RunState.CANCELLED
    prompts = len(office.prompts())
    assert send(office, minimal.commented(forge, "I see.")).state is IGNORED
    assert send(office, minimal.commented(forge, "@dev-bot go on")).state is HANDLED
    assert office.run().state is RunState.QUEUED and len(office.prompts()) == prompts + 1


@every_forge
def test_nothing_to_stop(office: Office, forge: Forge) -> None:
    """`@login stop` has no effect on an issue for which no run exists."""
    told = send(office, minimal.commented(forge, "@dev-bot stop"))
    assert (told.state, told.reason, office.runs()) == (IGNORED, "there is nothing to stop", [])


@every_forge
def test_mentions_in_quotes_and_code_begin_nothing(office: Office, forge: Forge) -> None:
    """An agent that is named only in a quote, in code or in an HTML comment is not started."""
    for text in (
        "> @dev-bot fix it\n\nWho is that?",
        "```\n@dev-bot fix it\n```",
        "<!-- @dev-bot fix it -->",
        "a `@dev-bot` is",
    ):
        assert send(office, minimal.commented(forge, text)).state is IGNORED, text
    assert office.runs() == []
    assert send(office, minimal.commented(forge, "> what now?\n\n@dev-bot fix it")).state is HANDLED


# --- confidential
# ------------------------------------------------------------------------------------------------


def test_confidential_issues_and_internal_notes(make: Callable[..., Office]) -> None:
    """An issue that only members may read on GitLab is worked on only if the rule allows it,
    because the branch may be public."""
    office = make()
    issue, note = (
        minimal.assigned(Forge.GITLAB),
        minimal.commented(Forge.GITLAB, "@dev-bot fix it", internal=True),
    )
    issue[2]["event_type"] = "confidential_issue"
    issue[2]["object_attributes"]["confidential"] = True
    reason = (
        "it is confidential, and the work of dev may be public: confidential = true in its "
        "rule allows it"
    )
    for sent in (issue, note):
        told = send(office, sent)
        assert (told.state, told.reason) == (IGNORED, reason)
    assert office.runs() == []
    office.rules = (replace(office.rules[0], confidential=True),)
    office.dispatcher._rules = office.rules
    assert [
        send(office, sent).state for sent in (minimal.assigned(Forge.GITLAB, sender="ben"), note)
    ] == [HANDLED, HANDLED]


def test_an_issue_that_became_confidential(make: Callable[..., Office]) -> None:
    """perdure also asks the forge itself. If an issue became confidential after the delivery, it
    becomes no task. Internal notes never reach the agent."""
    with asked(make, DEV, gitlab, Forge.GITLAB) as at:
        for number in range(1, 5):
            at.small.state.issue("shop/web", "ada", f"Issue {number}", assignees=["dev-bot"])
        item = at.small.state.repositories["shop/web"].items[4]
        item.confidential = True
        assert "it is confidential" in send(at.office, minimal.assigned(Forge.GITLAB)).reason
        item.confidential = False
        at.small.state.say("shop/web", 4, "ada", "For members alone.", verdict="internal")
        at.small.state.say("shop/web", 4, "ada", "For everybody.")
        assert send(at.office, minimal.assigned(Forge.GITLAB)).state is HANDLED
        assert (
            "For everybody." in at.office.prompts()[0]
            and "For members alone." not in at.office.prompts()[0]
        )


def test_a_merge_request_with_the_number_of_its_issue(office: Office) -> None:
    """GitLab numbers merge requests separately. Comments on the agent's own merge request go to its
    run, although the issue has the same number."""
    send(office, minimal.assigned(Forge.GITLAB))
    office.end(office.claim())
    sent = minimal.on_a_line(Forge.GITLAB, "Why?")
    sent[2]["merge_request"]["iid"] = 4
    assert send(office, sent).state is HANDLED
    assert len(office.prompts()) == 2
