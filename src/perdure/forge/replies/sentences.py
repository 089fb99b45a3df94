"""Writes the text of a task's one comment, and of the other comments about a run. Pure: the same
run always gives the same text, so a difference between two texts shows that there is something new.

Text of agents and strangers is escaped, so that a forge shows the text without acting on it. Inside
code, GitHub, Gitea, Forgejo and GitLab recognize no mentions, references, commands or HTML
(github.github.com/gfm 6.3 and 4.5; docs.gitlab.com/user/markdown). So `code` and `block` return
untrusted text as code, between fences longer than any fence in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from perdure.forge.webhooks.author_text import how_to
from perdure.model import Attempt, RunState, TaskRun, Usage
from perdure.model.requests import AgentRequest, RequestKind
from perdure.model.work import WorkReport
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import ASKING, ON_FORGE, is_shown_whole, shown_lines
from perdure.rules.text import clean, dollars, one_line, tokens

_REFERENCE = re.compile(r"(?<=[#!@$%&~^])(?=\w)|(?<=:)(?=//)|(?<=\w-)(?=\d)")
_APART = "\u2060"
"""A word joiner. It is invisible, and it splits a reference or mention so that the forge does not
recognize it."""


def code(text: str, width: int = 200) -> str:
    """Return a word or a sentence as inline code, which is also safe in a cell of a table."""
    line = one_line(text, width).replace("`", "'").replace("|", "\u00a6")
    if line:
        return f"`{line}`"
    return ""


def block(text: str, most: int) -> str:
    """Return the text as a code block, cut to `most` characters. Empty for an empty text."""
    whole = clean(text).replace("\r", "").strip()
    if not whole:
        return ""
    if len(whole) <= most:
        shown = whole
    else:
        shown = f"{whole[:most].rstrip()}\n[... {len(whole) - most} more characters]"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def title(text: str, width: int = 200) -> str:
    """Return a title in which all references, mentions and addresses are split, so that a forge
    does not recognize them. A forge shows no code in titles, so `code` cannot be used for them."""
    return _REFERENCE.sub(_APART, one_line(text, width).replace("<", "\u2039").replace("`", "'"))


MOST = 60_000
"""Maximum length of the comment, in characters. GitHub accepts 65,536; the other forges accept
more."""
MOST_RECEIPT = 40_000
"""Maximum length of a signed receipt in the comment, in characters."""
ROWS = 20
CHECKS = 5
"""Maximum number of items in each list of the comment, such as checks or denied calls."""
WORDS = 4_000
"""Maximum length of the agent's closing text in the comment, in characters."""

STATES = {
    RunState.PENDING: "waits for what it needs",
    RunState.QUEUED: "is about to start",
    RunState.RUNNING: "is running",
    RunState.SUCCEEDED: "is done",
    RunState.FAILED: "has failed",
    RunState.CANCELLED: "was stopped",
}


class Account(Struct, frozen=True, kw_only=True):
    """The facts about a run that its comment reports."""

    rule: str
    """Name of the rule. People know the agent by this name."""
    run: TaskRun
    attempts: Sequence[Attempt]
    work: WorkReport | None = None
    """Work report of the newest ended attempt; None if no attempt has ended."""
    words: str = ""
    """The agent's text at the end of its last turn; empty while the run is not in a final state."""
    branch: str = ""
    """The run's branch; shown as pushed if `commit` is not empty."""
    commit: str = ""
    pull: int = 0
    pull_url: str = ""
    held_back: str = ""
    """Reason why the branch was not pushed or has no pull request; otherwise empty."""
    page: str = ""
    """Address of the run's page on the dashboard; empty if it has none."""
    receipt: str = ""
    """Signed receipt of the run's newest attempt; empty if it is not to be attached to the comment.
    """


def comment(account: Account, marker: str) -> str:
    """Return the whole text of the comment, including the marker that identifies it."""
    run = account.run
    asking = [each.message for each in run.conditions if each.type in ASKING]
    withdrawn = [each.message for each in run.conditions if each.type == "withdrawn"]
    parts = [
        marker,
        f"**{account.rule}** ({run.spec.agent}) {_state(account)}.",
        *(f"**A person is needed:** {code(message, 600)}" for message in asking),
        *(f"**No longer working on it:** {code(message, 600)}" for message in withdrawn),
        *([_held_back(account.held_back)] if account.held_back and not _needs_person(run) else []),
        _branch(account),
        _table(account.attempts),
        _work(account.work),
        _said(account.words),
        _signed(account.receipt),
        _by_hand(account),
    ]
    text = "\n\n".join(filter(None, parts))
    if len(text) <= MOST:
        return text
    return f"{text[: MOST - 20].rstrip()}\n\n[...]"


def call(rule: str, login: str, needs: Sequence[str], page: str) -> str:
    """Return the text of a comment that calls a person. The comment mentions `login`, so the caller
    must have checked its characters."""
    asked = "; ".join(code(each, 600) for each in needs)
    link = f" [Its page](<{page}>)." if page else ""
    return f"@{login} **{rule}** needs you: {asked}.{link}"


def requests_text(
    requests: Sequence[AgentRequest], prefix: str, clean: Callable[[str], str]
) -> str:
    """Return the text that shows the agent's open requests, and how to answer each in a comment.
    `prefix` begins each command on this forge; `clean` removes secrets from a text."""
    return "\n\n".join(_request(each, prefix, clean) for each in requests)


def _request(request: AgentRequest, prefix: str, clean: Callable[[str], str]) -> str:
    how = f"To answer, comment {how_to(request, prefix, clean)}, as the first line."
    if request.kind is RequestKind.QUESTION:
        how = f"A plain comment is the answer; {how_to(request, prefix, clean)} names the question."
    elif not is_shown_whole(request, clean):
        how += (
            " It is too long to be shown here whole, or holds what looks like a secret, so it can "
            "only be allowed elsewhere."
        )
    text = block("\n".join(shown_lines(request)), ON_FORGE)
    return f"Request {request.number}:\n\n{text}\n\n{how}"


def attached(rule: str, run: TaskRun, receipt: str) -> str:
    """Return the text of the comment that attaches a run's receipt to its pull request."""
    return f"**{rule}**: the evidence of run {code(run.name)}.\n\n{_signed(receipt)}"


def _held_back(why: str) -> str:
    if why.startswith("no pull request"):
        head = "No pull request"
    else:
        head = "Not pushed"
    return f"**{head}:** {code(why, 600)}"


def _needs_person(run: TaskRun) -> bool:
    return any(each.type in ASKING for each in run.conditions)


def _state(account: Account) -> str:
    run = account.run
    words = STATES[run.state]
    if run.state is RunState.RUNNING:
        words += f" (attempt {run.attempt})"
    elif run.state is RunState.QUEUED and _needs_person(run):
        words = "waits for a person"
    elif run.state is RunState.QUEUED and run.attempt:
        words = f"continues soon (attempt {run.attempt + 1})"
    why = run.reason if run.state is not RunState.SUCCEEDED else ""
    if why:
        return f"{words}: {code(why, 300)}"
    return words


def _branch(account: Account) -> str:
    if not account.commit:
        return ""
    at = f"Branch {code(account.branch)} at `{account.commit[:12]}`"
    if account.pull and account.pull_url:
        return f"{at}, [pull request {account.pull}](<{account.pull_url}>)."
    return f"{at}."


def _work(work: WorkReport | None) -> str:
    """Return the verdict on the work, and the facts that a reviewer should know before reading the
    changes. Empty if there is no verdict."""
    if work is None or work.verdict is None:
        return ""
    why = code("; ".join(work.reasons[:1]), 300)
    reason = f" ({why})" if why else ""
    lines = [f"**Work: {work.verdict.value}**{reason}"]
    lines += [f"Contradiction: {code(each, 300)}" for each in work.contradictions[:CHECKS]]
    if work.observed:
        lines.append(
            f"Changed: {work.file_count} file(s), +{work.lines_added} -{work.lines_removed} lines, "
            f"{work.commit_count} commit(s)"
        )
    for check in work.checks[-CHECKS:]:
        if check.code is None:
            ended = "end not seen"
        else:
            ended = f"exit code {check.code}"
        lines.append(f"Check ({code(check.by)}): {code(check.command, 160)} {ended}")
    for call in work.denied[:CHECKS]:
        lines.append(f"Denied: {code(f'{call.name} {call.input}', 160)} ({call.count})")
    if len(work.denied) > CHECKS:
        lines.append(f"Denied: {len(work.denied) - CHECKS} more")
    lines += [f"Decided by a saved rule: {code(each, 200)}" for each in work.ruled[:CHECKS]]
    if work.question:
        lines.append(f"It asks: {code(work.question, 300)}")
    if (word := work.last_word) is not None:
        lines.append(f"It says: {code(word.status)}, {code(word.summary, 300)}")
        lines += [f"It asks: {code(each, 300)}" for each in word.questions[:CHECKS]]
        lines += [f"Next: {code(each, 300)}" for each in word.follow_ups[:CHECKS]]
    # In Markdown, two trailing spaces make a line break.
    return "  \n".join(lines)


def _table(attempts: Sequence[Attempt]) -> str:
    begun = [each for each in attempts if each.continuation is not None or each.outcome is not None]
    if not begun:
        return ""
    lines = [
        "| attempt | outcome | conversation | took | tokens in / out | cost |",
        "|---|---|---|---|---|---|",
    ]
    if len(begun) > ROWS:
        lines.append(f"| {begun[0].number} to {begun[-ROWS - 1].number} | ... | | | | |")
    lines += map(_row, begun[-ROWS:])
    if len(begun) > 1:
        total = Usage()
        for each in begun:
            total = total + each.usage
        lines.append(f"| all | | | | {_spent(total)} | {_cost(total)} |")
    return "\n".join(lines)


def _row(each: Attempt) -> str:
    outcome, took = "running", ""
    if each.outcome is not None:
        if each.outcome.detail and not each.outcome.ok:
            detail = f": {code(each.outcome.detail, 120)}"
        else:
            detail = ""
        outcome, took = (
            f"{each.outcome.kind}{detail}",
            _lasting((each.ended or each.started) - each.started),
        )
    proof = each.receipt.verdict.value if each.receipt is not None else ""
    return (
        f"| {each.number} | {outcome} | {proof} | {took} | {_spent(each.usage)} | "
        f"{_cost(each.usage)} |"
    )


def _spent(usage: Usage) -> str:
    mark = "≈" if usage.estimated else ""
    if usage.input or usage.output:
        return f"{mark}{tokens(usage.input)} / {mark}{tokens(usage.output)}"
    return ""


def _cost(usage: Usage) -> str:
    if usage.cost_usd:
        return dollars(usage.cost_usd, estimated=usage.estimated)
    return ""


def _lasting(ms: int) -> str:
    """Format a duration in ms: `12s`, `3m 5s`, `1h 20m`."""
    seconds = max(0, ms // 1000)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60}m"


def _said(words: str) -> str:
    shown = block(words, WORDS)
    if shown:
        return (
            f"<details><summary>What the agent said at the end</summary>\n\n{shown}\n\n</details>"
        )
    return ""


def _signed(receipt: str) -> str:
    """Return the receipt in a collapsible section, in the form that `perdure receipt verify` reads.
    If the receipt is too long, return a sentence that says how to get it. Empty if there is no
    receipt."""
    if not receipt:
        return ""
    if len(receipt) > MOST_RECEIPT:
        return "The signed receipt is too long for a comment: `perdure receipt` prints it."
    return (
        "<details><summary>Signed receipt</summary>\n\n"
        f"```json\n{receipt.rstrip()}\n```\n\n</details>"
    )


def _by_hand(account: Account) -> str:
    name, over = account.run.name, account.run.state in FINAL
    lines = [
        f"perdure why {name}",
        *([f"perdure open {name}"] if over else [f"perdure logs -f {name}"]),
    ]
    lines += (
        [f"perdure retry {name}"]
        if account.run.state in (RunState.FAILED, RunState.CANCELLED)
        else []
    )
    page = f"[Its page](<{account.page}>). " if account.page else ""
    is_off = any(each.type == "withdrawn" for each in account.run.conditions)
    if is_off:
        told = "Comments here reach the agent when it continues. "
    else:
        told = "While this is open, a comment here continues the same conversation. "
    listed = "\n".join(f"    {line}" for line in lines)
    return f"{page}{told}On the machine where it runs:\n\n{listed}"
