"""Settings: which source has precedence, what a project may not set, and every problem with its
place."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.arguments import spec_of
from perdure.cli.runs.run import run_arguments
from perdure.config import Settings
from perdure.config.files import LIMITS, NOT_FOR_PROJECTS, load
from perdure.config.passwords import password, shown
from perdure.config.values import READERS
from perdure.errors import ConfigError
from perdure.model import ContinuityPolicy, Permissions
from perdure.model.durations import duration, written


class Place:
    """A home with a user's settings file, and a project with the current directory."""

    def __init__(self, top: Path) -> None:
        self.home, self.project = top / "home", top / "project"
        self.user_file = self.home / ".config/perdure/config.toml"
        self.project_file = self.project / "perdure.toml"
        self.user_file.parent.mkdir(parents=True)
        self.project.mkdir()

    def load(self, cwd: Path | None = None, **environ: str) -> Settings:
        return load({"HOME": str(self.home), **environ}, cwd or self.project)

    def problems(self, **environ: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load(**environ)
        return caught.value.problems


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_defaults_lie_in_the_xdg_directories(place: Place) -> None:
    """Without any source the documented defaults are used, below the home, and no setting has an
    origin."""
    settings = place.load()
    assert settings == Settings(
        root=place.home / ".local/share/perdure", state=place.home / ".local/state/perdure"
    )
    assert (settings.permissions, settings.continuity, settings.attempts) == (
        Permissions.EDIT,
        ContinuityPolicy.DISCLOSE,
        3,
    )
    assert settings.origin == {}


def test_the_environment_beats_the_project_beats_the_user(place: Place) -> None:
    """Each source overrides the weaker ones, setting by setting. The origin names the source that
    was used, with the line."""
    place.user_file.write_text("agent = 'one'\nmodel = 'one'\nbase = 'one'\n")
    place.project_file.write_text("# ours\nagent = 'two'\nmodel = 'two'\n")
    settings = place.load(PERDURE_AGENT="three", PERDURE_BASE="")
    assert (settings.agent, settings.model, settings.base) == ("three", "two", "one")
    assert settings.origin == {
        "agent": "PERDURE_AGENT",
        "model": f"{place.project_file}:3",
        "base": f"{place.user_file}:3",
    }


def test_every_setting_can_come_from_each_source(place: Place) -> None:
    """All settings are read from the environment and from the user's file, with the same
    meaning."""
    values = {
        "root": "/r",
        "state": "/s",
        "agent": "codex",
        "model": "m",
        "permissions": "full",
        "continuity": "strict",
        "attempts": "7",
    }
    values |= {
        "timeout": "2h",
        "stall": "15m",
        "grace": "3",
        "checkpoint_every": "5s",
        "checkpoint_store": "s3://bucket/tasks",
        "checkpoint_secrets": "allow",
        "receipts": "note",
        "checkpoint_ignored": "none",
        "spare_workdirs": "2",
        "budget_usd": "2.5",
        "backend": "isolated",
        "base": "main",
        "verify": "make",
        "account_jobs": "claude=2,codex=1",
        "cold_cache": "cheapest",
        "verify_rounds": "2",
        "verify_timeout": "5m",
    }
    values |= {"database": "postgresql://me@db/tasks", "lease": "30s"}
    values |= {"run_as": "agents:perdure"}
    values |= {
        "git_ssh_key": "/key",
        "git_ssh_known_hosts": "/known",
        "git_ssh_config": "/ssh_config",
    }
    values |= {"ca_file": "/ca.pem", "session_lifetime": "8h", "session_expiry": "rebuild"}
    values |= {"map": "first", "map_tokens": "1500"}
    values |= {"session_cache": "redis://:word@cache:6379/0"}
    ages = ("workdirs", "copies", "logs", "orphans", "checkpoints", "caches", "scratch", "trash")
    values |= {f"gc_{name}": "5d" for name in ages} | {"gc_most": "30"}
    values |= {
        "disk_warn": "20%",
        "disk_refuse": "5",
        "disk_refuse_bytes": "500MB",
        "disk_ballast": "1.5 GB",
    }
    values |= {
        "when_full": "roll-over",
        "on_denied": "report",
        "request_expiry": "3d",
        "last_word": "on",
        "on_leftover": "keep",
        "full_at": "70%",
        "windows": "my-model*=32000, other=200000",
    }
    values |= {
        "warm": "on",
        "warm_idle": "90s",
        "warm_turns": "9",
        "warm_memory": "1GB",
        "warm_most": "2",
    }
    values |= {
        "gc_inbox": "5d",
        "serve_listen": "[::1]:80",
        "serve_reconcile": "90s",
        "serve_public_url": "https://perdure.example.com",
        "serve_proxies": "127.0.0.1 10.0.0.0/8",
        "serve_hosts": "a.example b.example",
        "serve_push_contact": "ada@example.com",
        "serve_push_hosts": "push.example.com 127.0.0.1:8443",
        "clone_hosts": "git.example.com 10.0.0.5:3000",
        "agents": (
            '{"dev": {"agent": "codex", "authors": ["ada"], "clone": "/srv/{repository}", '
            '"labels": ["agent"]}}'
        ),
        "webhooks": "shop=gitea:/s,$OLD lab=$LAB",
        "openid": (
            '{"issuer": "https://id.example.com", "client_id": "perdure", '
            '"rules": [{"claim": "email", "value": "*@example.com", "scope": "read"}]}'
        ),
        "notify": '{"chat": {"service_file": "/chat", "quiet": "22:00-07:00"}}',
    }
    assert set(values) == set(READERS)
    by_environment = place.load(
        **{f"PERDURE_{name.upper()}": value for name, value in values.items()}
    )
    place.user_file.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    by_file = place.load()
    for name in READERS:
        assert getattr(by_environment, name) == getattr(by_file, name)
    assert (by_file.timeout, by_file.stall, by_file.attempts, by_file.budget_usd) == (
        7200.0,
        900.0,
        7,
        2.5,
    )
    assert by_file.permissions is Permissions.FULL
    assert (by_file.gc_trash, by_file.disk_warn, by_file.disk_refuse_bytes) == (
        432_000.0,
        20.0,
        500 * 1024**2,
    )


def test_sources_in_a_table_and_in_words(place: Place) -> None:
    """`[webhooks.NAME]` in a file and the text of the variable have the same meaning. An invalid
    source is refused with the reason."""
    tables = (
        '[webhooks.shop]\nforge = "gitea"\nsecret_file = "/s"\nsecret_env = '
        '"OLD"\n[webhooks.lab]\nsecret_env = ["LAB"]\n'
    )
    place.user_file.write_text(tables)
    assert (
        place.load().webhooks == place.load(PERDURE_WEBHOOKS="shop=gitea:/s,$OLD lab=$LAB").webhooks
    )
    for wrong in ("shop", "shop=secret", "shop=cvs:/s", "A=/s", "a=$B-C", "a=/s,/t,/u", "a=$"):
        with pytest.raises(ConfigError):
            place.load(PERDURE_WEBHOOKS=wrong)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[openid]\nissuer = "id"\nclient_secret = "hunter2"\n', "client_secret"),
        ('[notify.a]\nurl = "https://example.com"\npassword = "hunter2"\n', "password"),
        ('[webhooks.a]\nsecret = "hunter2"\n', "secret"),
        ('[agents.a]\ntoken = "hunter2"\n', "token"),
    ],
)
def test_an_error_in_a_table_does_not_repeat_it(place: Place, table: str, named: str) -> None:
    """A secret that somebody wrote into the wrong place of the configuration is not printed."""
    place.user_file.write_text(table)
    with pytest.raises(ConfigError) as found:
        place.load()
    (problem,) = found.value.problems
    assert f"no setting {named!r}" in problem and "hunter2" not in problem


def test_a_table_is_a_prefix(place: Place) -> None:
    """`trash` in `[gc]` is `gc_trash`. Its problems name the line in the table, and a project may
    not set it."""
    place.user_file.write_text("agent = 'codex'\n[gc]\ntrash = '3d'\n[disk]\nwarn = '25%'\n")
    settings = place.load()
    assert (settings.gc_trash, settings.disk_warn) == (259_200.0, 25.0)
    assert settings.origin["gc_trash"] == f"{place.user_file}:3"
    place.user_file.write_text("[disk]\nwarn = 'much'\n[gc]\nwarn = 1\n")
    place.project_file.write_text("[gc]\ntrash = '0'\n")
    with pytest.raises(ConfigError) as error:
        place.load()
    assert [problem.split(": ")[0] for problem in error.value.problems] == [
        f"{place.user_file}:2",
        f"{place.user_file}:4",
        f"{place.project_file}:2",
    ]


def test_all_problems_are_told_at_once_with_their_lines(place: Place) -> None:
    """Invalid values and unknown names of every source are listed together, each with its file and
    line or its variable."""
    place.user_file.write_text("agent = 5\n\ntimeout = 'soon'\n[colour]\nattempts = 1\n")
    place.project_file.write_text("permissions = 'full'\nbackend = 'cloud'\n")
    problems = place.problems(PERDURE_ATTEMPTS="many", PERDURE_BUDGET_USD="-1")
    user, project = str(place.user_file), str(place.project_file)
    assert len(problems) == 7
    starts = [
        f"{user}:1: agent",
        f"{user}:3: timeout",
        f"{user}:4: there is no setting 'colour'",
        f"{project}:1: 'permissions'",
    ]
    starts += [
        f"{project}:2: backend: expected one of worktree, isolated",
        "PERDURE_ATTEMPTS: expected a whole number",
        "PERDURE_BUDGET_USD: expected an amount",
    ]
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_a_misspelt_setting_is_told_the_nearest(place: Place) -> None:
    """A name that is nearly a setting gets that setting suggested. Every unknown name gets the
    command that lists the settings, not the list itself."""
    place.user_file.write_text("agnet = 'claude'\n[serv]\nlisten = 'x'\n")
    near, table = place.problems()
    assert near.endswith(
        "there is no setting 'agnet', but there is 'agent'; perdure config show lists them"
    )
    assert "but there is 'serve'" in table


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0s"),
        (0.25, "0.25s"),
        (90.0, "90s"),
        (600.0, "10m"),
        (7200.0, "2h"),
        (1209600.0, "14d"),
        (1234567.5, "1234567.5s"),
    ],
)
def test_a_duration_is_shown_as_it_may_be_written(seconds: float, words: str) -> None:
    """A duration in the output of `config show` and `doctor` can be copied into a file, and has the
    same value there."""
    assert written(seconds) == words and duration(words) == seconds


@pytest.mark.parametrize("name", sorted(NOT_FOR_PROJECTS))
def test_a_project_may_not_widen_anything(place: Place, name: str) -> None:
    """A repository's file cannot widen permissions or move perdure's state, with any value."""
    place.project_file.write_text(f"{name} = 'read'\n")
    assert place.problems() == [
        f"{place.project_file}:1: {name!r} may not be set by a project; put it into your own "
        "configuration"
    ]
    assert {"root", "state", "permissions", "continuity"} <= NOT_FOR_PROJECTS


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_project_may_lower_a_limit_and_not_raise_it(place: Place, name: str) -> None:
    """The user's limits hold for every project. If the user has set none, a project may choose."""
    place.project_file.write_text(f"{name} = 5\n")
    assert getattr(place.load(), name) == 5
    place.user_file.write_text(f"{name} = 9\n")
    assert getattr(place.load(), name) == 5
    place.user_file.write_text(f"{name} = 4\n")
    wrong = (
        f"{place.project_file}:1: {name!r} may not be raised by a project above your own, 4 "
        f"({place.user_file}:1)"
    )
    assert place.problems() == [wrong]
    if name != "attempts":
        place.project_file.write_text(f"{name} = 0\n")
        assert place.problems() == [wrong]


def test_the_nearest_project_file_within_the_repository_counts(place: Place) -> None:
    """The file is found from a subdirectory, and is not searched above the top of the repository."""
    place.project_file.write_text("agent = 'outer'\n")
    inner = place.project / "inner/deep"
    inner.mkdir(parents=True)
    assert place.load(inner).agent == "outer"
    (place.project / "inner/.git").write_text("gitdir: elsewhere\n")
    assert place.load(inner).agent == "claude"
    (place.project / "inner/perdure.toml").write_text("agent = 'inner'\n")
    assert place.load(inner).agent == "inner"


BAD_FILES = {
    "no toml": b"agent = \n",
    "not utf-8": b"agent = '\xff'\n",
    "nested too deep": b"agent = " + b"[" * 20_000,
    "a number too long to read": b"attempts = " + b"9" * 5000,
    "a number too large for dollars": b"budget_usd = 1" + b"0" * 400,
    "a home that is not there": b"root = '~nobody-has-this-name/x'\n",
    "a place with NUL": b'state = "/a\\u0000b"\n',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_a_problem_and_not_a_crash(place: Place, content: bytes) -> None:
    """The error for a file of any content is a sentence that names the file, and not a crash."""
    place.user_file.write_bytes(content)
    (problem,) = place.problems()
    assert problem.startswith(str(place.user_file))


def test_a_file_that_cannot_be_read_is_named(place: Place) -> None:
    """A directory in place of the settings file is a problem, and so is a name that is too long for
    a file. A missing file is no problem."""
    place.user_file.mkdir()
    (problem,) = place.problems()
    assert str(place.user_file) in problem
    assert "too long" in place.problems(XDG_CONFIG_HOME="/" + "x" * 5000)[0]
    place.project_file.write_text("")
    for nowhere in (str(place.project_file), "/nonexistent"):
        assert place.load(XDG_CONFIG_HOME=nowhere).agent == "claude"


@given(
    st.sampled_from(sorted(READERS)),
    st.text()
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.lists(st.text())
    | st.dates(),
)
def test_any_value_is_read_or_refused(name: str, value: Any) -> None:
    """A reader returns a value or raises a ValueError with a sentence, and never raises another
    error."""
    try:
        READERS[name](value)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["budget_usd", "attempts", "timeout", "agent", "root"])
def test_yes_is_no_amount(name: str) -> None:
    """`true` in TOML is not accepted as the number 1, nor as a name."""
    with pytest.raises(ValueError, match="expected"):
        READERS[name](True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        (" 3 m ", 180),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Seconds, minutes, hours and days are accepted; a number without a unit is in seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "-5", "1h30m", "1e3", "inf", "nan", "5 parsecs", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    """Any other text is not a duration and is refused, and so is a number that is too large."""
    with pytest.raises(ValueError, match="such as 90s"):
        duration(text)


def test_relative_xdg_directories_are_ignored(place: Place) -> None:
    """A relative XDG directory is ignored, because the specification calls it invalid. An absolute
    one is used."""
    settings = place.load(XDG_DATA_HOME="data", XDG_STATE_HOME="./state", XDG_CONFIG_HOME="config")
    assert settings.root == place.home / ".local/share/perdure"
    assert settings.state == place.home / ".local/state/perdure"
    assert place.load(XDG_DATA_HOME="/d", XDG_STATE_HOME="/s").root == Path("/d/perdure")


@pytest.mark.parametrize("name", ["root", "state"])
def test_a_place_is_absolute(place: Place, name: str) -> None:
    """A setting for a directory must be absolute. A relative directory would be another one after
    each `cd`."""
    assert "expected an absolute path" in place.problems(**{f"PERDURE_{name.upper()}": "work"})[0]


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter%202@db:5432/tasks",
        "postgresql://db/tasks?user=me&password=hunter%202&sslmode=require",
        "postgres://:hunter%202@/tasks?host=/run/postgresql",
    ],
)
def test_a_password_is_never_shown(place: Place, address: str) -> None:
    """The address of a database is shown without its password, and the password is redacted
    elsewhere. An invalid address is not repeated at all."""
    settings = place.load(PERDURE_DATABASE=address)
    assert settings.database == address and "hunter" not in shown("database", address)
    assert password(address) == "hunter 2"
    assert (
        shown("database", "postgresql://me@db/tasks") == "postgresql://me@db/tasks"
        and password("postgresql://me@db/tasks") == ""
    )
    place.user_file.write_text(f"database = 'mysql://{address}'\n")
    problems = place.problems(PERDURE_DATABASE=f"mysql://{address}")
    assert len(problems) == 2 and "hunter" not in str(problems)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("3", {"*": 3}),
        ("claude=2, codex=1", {"claude": 2, "codex": 1}),
        ("*=4,claude=1", {"*": 4, "claude": 1}),
    ],
)
def test_runs_at_work_by_account(place: Place, said: str, found: dict[str, int]) -> None:
    """The number of simultaneous runs is one number for all agents, or a number for each agent. In
    a file it may also be a table."""
    assert place.load(PERDURE_ACCOUNT_JOBS=said).account_jobs == found
    place.user_file.write_text(
        "[account_jobs]\n" + "".join(f'"{name}" = {jobs}\n' for name, jobs in found.items())
    )
    assert place.load().account_jobs == found


@pytest.mark.parametrize(
    "said", ["0", "claude=0", "claude", "claude=2,codex", "=2", "claude=x", ""]
)
def test_no_number_of_runs(place: Place, said: str) -> None:
    """An invalid number of runs is reported. An empty text means that the setting is not set."""
    if not said:
        assert place.load(PERDURE_ACCOUNT_JOBS=said).account_jobs == {}
        return
    with pytest.raises(ConfigError, match="ACCOUNT_JOBS"):
        place.load(PERDURE_ACCOUNT_JOBS=said)


def test_settings_that_do_not_fit_the_flags(place: Place) -> None:
    """`perdure run` does not use the settings' model for another agent, nor their check for a task
    that may only read. The flags of the same name are used."""
    chosen = place.load(PERDURE_MODEL="opus", PERDURE_VERIFY="make usual")

    parser = ArgumentParser()
    run_arguments(parser)

    def flags(*given: str) -> tuple[str, str]:
        spec = spec_of(parser.parse_intermixed_args([*given, "Go."]), chosen, place.project)
        return spec.model, spec.verify

    assert flags() == ("opus", "make usual")
    assert flags("--agent", "codex", "--permissions", "read") == ("", "")
    own = ("--model", "m", "--verify", "make own")
    assert flags("--agent", "codex", "--permissions", "read", *own) == ("m", "make own")
    assert flags("--verify", "") == ("opus", "")
