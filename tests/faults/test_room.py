"""A disk that becomes full: new work is refused early, the results of running work are still
written, reads always work, and recovery needs no manual step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import DiskFull
from perdure.host.volumes import Ballast, DiskRoom, Volumes, free_space
from tests.faults import cut, full
from tests.faults.wall import PROGRAMS
from tests.journeys.stage import TOP

MB = 1024**2

TO_THE_WALL = """
import json, os, sys
from pathlib import Path
from perdure import store as stores
from perdure.errors import StoreError
from perdure.testing.stores.samples import submit
from perdure.host.volumes import Ballast, free_space

state = Path(sys.argv[1])
ballast = Ballast(state, int(sys.argv[2]) << 20)
made = ballast.make()
store = stores.open(state / "perdure.db", ballast=ballast)
submit(store)
filler = open(state / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(b"x" * 65536)
except OSError:
    pass
written, failed = 0, ""
for _ in range(60):
    try:
        submit(store)
        written += 1
    except StoreError as error:
        failed = str(error)
        break
read = len(store.find(limit=1000))
os.truncate(state / "filler", 0)
after = ballast.make()
submit(store)
print(json.dumps({"made": made, "written": written, "failed": failed, "read": read, "after": after, "problems": store.problems()}))
"""


def on_a_small_disk(place: Path, size: str, *words: str) -> dict[str, object]:
    """Run Python code on a tmpfs of this size, in a mount namespace. Return what it printed, read
    as JSON."""
    place.mkdir()
    inside = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        inside,
        "sh",
        size,
        str(place),
        sys.executable,
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_ballast_lets_the_database_write_on_a_full_disk(tmp_path: Path) -> None:
    """On a completely full volume the database still accepts sixty runs, and reads work. When there
    is space again, the ballast is made again."""
    found = on_a_small_disk(
        tmp_path / "state", "40m", "-c", TO_THE_WALL, str(tmp_path / "state"), "16"
    )
    assert found == {
        "made": True,
        "written": 60,
        "failed": "",
        "read": 61,
        "after": True,
        "problems": [],
    }


def test_without_a_ballast_the_wall_is_one_sentence(tmp_path: Path) -> None:
    """Without a ballast a write on a full disk stores nothing and gives one sentence. Existing data
    can be read, and the database stays valid. When there is space again, writes work."""
    found = on_a_small_disk(
        tmp_path / "state", "10m", "-c", TO_THE_WALL, str(tmp_path / "state"), "0"
    )
    assert "is full; nothing was stored" in str(found["failed"])
    assert found["read"] == int(str(found["written"])) + 1 and found["problems"] == []


FULL_AND_SHUT = """
import json, os, shutil, subprocess, sys
from pathlib import Path
from perdure import store as stores
from perdure.testing.stores.samples import submit

state, log_stays = Path(sys.argv[1]), sys.argv[2] == "killed"
store = stores.open(state / "perdure.db")
submit(store)
if log_stays:
    # As a kill leaves it: with a log, and then no shared memory, as after a restart of the machine.
    for name in ("perdure.db", "perdure.db-wal"):
        shutil.copy(state / name, state / f"kept-{name}")
store.close()
if log_stays:
    for name in ("perdure.db", "perdure.db-wal"):
        (state / f"kept-{name}").replace(state / name)
assert not (state / "perdure.db-shm").exists()
filler = open(state / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(b"x" * 4096)
except OSError:
    pass
print(json.dumps({"log": (state / "perdure.db-wal").exists(), "read": len(stores.open(state / "perdure.db", read_only=True).find())}))
"""


@pytest.mark.parametrize("how", ["shut", "killed"])
def test_a_list_is_read_on_a_volume_without_a_free_block(tmp_path: Path, how: str) -> None:
    """Lists can be read on a volume that has no space even for SQLite's shared memory. This holds
    after a clean end, and with the write-ahead log that a kill left."""
    found = on_a_small_disk(
        tmp_path / "state", "4m", "-c", FULL_AND_SHUT, str(tmp_path / "state"), how
    )
    assert found == {"log": how == "killed", "read": 1}


def test_new_work_is_refused_below_both_marks(tmp_path: Path) -> None:
    """New work is refused only if the percentage of free space and the free bytes are both below
    their limits. A tenth of a large disk is a lot, and so is all of a small one."""
    large = DiskRoom(
        tmp_path, free=90 * 1024 * MB, size=1000 * 1024 * MB, files_free=10**6, files=10**7
    )
    small = DiskRoom(tmp_path, free=900 * MB, size=1000 * MB, files_free=10**6, files=10**6)
    tight = DiskRoom(tmp_path, free=90 * MB, size=1000 * MB, files_free=10**6, files=10**6)
    no_names = DiskRoom(
        tmp_path, free=90 * 1024 * MB, size=1000 * 1024 * MB, files_free=10, files=10**7
    )
    assert [each.is_below(10.0, 2048 * MB) for each in (large, small, tight, no_names)] == [
        False,
        False,
        True,
        True,
    ]


def test_the_refusal_says_where_and_what_next(tmp_path: Path) -> None:
    """The refusal is one sentence with the path and the numbers. It has exit code 7 and the
    commands that help. A limit of 0 refuses nothing."""
    there = free_space(tmp_path / "not" / "yet")
    never, always = (
        Volumes(places=(tmp_path,), refuse=0.0),
        Volumes(places=(tmp_path,), refuse=100.1, refuse_bytes=there.size + 1),
    )
    never.check()
    with pytest.raises(DiskFull, match=str(tmp_path)) as refused:
        always.check()
    assert refused.value.exit_code == 7 and "perdure gc" in refused.value.hint


def test_a_ballast_takes_real_space_and_never_the_last(tmp_path: Path) -> None:
    """The ballast's blocks are really allocated. It is made once and released as a whole. It is not
    made if too little space would be left."""
    ballast = Ballast(tmp_path, 4 * MB)
    assert ballast.make() and ballast.path.stat().st_blocks * 512 >= 4 * MB
    assert ballast.give_up() and ballast.path.stat().st_blocks == 0
    assert not ballast.give_up()
    assert ballast.make() and ballast.make()
    huge = Ballast(tmp_path / "other", free_space(tmp_path).free)
    huge.directory.mkdir()
    assert not huge.make() and list(huge.directory.iterdir()) == []
    assert not Ballast(tmp_path / "other", 0).make()


REFUSED = """
set -u
perdure run --detach --name late Do; echo "code $?"
perdure ls --json; echo "code $?"
mount --options-mode=ignore -o remount,size=64m "$PERDURE_STATE"
perdure run --detach --name late Do; echo "code $?"
"""


def test_a_full_disk_refuses_at_the_door_and_opens_again(
    tmp_path: Path, repository: Path, agents: dict[str, Path]
) -> None:
    """`perdure run` on a full volume ends with exit code 7 and one sentence, and leaves nothing
    behind. Lists still work. When there is space again, the run is accepted."""
    state = tmp_path / "state"
    state.mkdir()
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "PERDURE_STATE": str(state),
    }
    environ |= {
        "PERDURE_CLAUDE": str(agents["claude"]),
        "PERDURE_DISK_BALLAST": "0",
        "LANG": "C.UTF-8",
        "PERDURE_STALL": "1",
    }
    inside = (
        'mount -t tmpfs -o size=8m none "$PERDURE_STATE" && head -c 7900000 /dev/zero > '
        f'"$PERDURE_STATE/filler"\n{REFUSED}'
    )
    # A pid namespace, so that the detached supervisor ends with the command.
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
        "-c",
        inside,
    ]
    done = subprocess.run(command, cwd=repository, env=environ, capture_output=True, text=True)
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 7", "code 0", "code 0"], (done.stdout, done.stderr)
    assert "The disk is nearly full" in done.stderr and "Traceback" not in done.stderr
    assert '"runs": []' in done.stdout


@pytest.mark.journey
def test_a_sample_of_full_disks() -> None:
    """Nine of the trials of `make faults`: a real agent's disk becomes full, and a retry succeeds
    when there is space again."""
    assert full.in_a_namespace(["full", "5"]) == 0 and full.in_a_namespace(["calls", "4"]) == 0


COUNTED = re.compile(r"^\| ([^|]+) \| (\d+) \| (\d+) \|(?: \d+ \|)? (\d+) \|$", re.MULTILINE)


def test_the_page_tells_of_the_trials_that_are_made() -> None:
    """The reference has a line for each volume, program and acknowledgement of the trials. Each
    line has at least as many trials as a pull request runs, and no failure. The text below the
    table has the same numbers."""
    page = (TOP / "docs/reference/faults.md").read_text().partition("\n## A lost Redis\n")[0]
    lines = [
        (what.split("`")[1] if "`" in what else "", *map(int, counts))
        for what, *counts in COUNTED.findall(page)
    ]
    assert [what for what, *_ in lines] == [*full.PLACES, *PROGRAMS, *cut.AROUND]
    disks, cuts = lines[: -len(cut.AROUND)], lines[-len(cut.AROUND) :]
    assert (
        sum(trials for _, trials, *_ in disks[: len(full.PLACES)]) >= 40
        and sum(counted for _, _, counted, _ in cuts) >= 10
    )
    for part in (disks, cuts):
        assert all(
            counted <= trials and wrong == 0 and counted >= trials * 3 // 4
            for _, trials, counted, wrong in part
        )
        assert f"{300 / sum(counted for _, _, counted, _ in part):.0f} % of" in page
