"""`perdure export`: writes one checkpoint of a run as a capsule. The run is not changed, and may be
running at the same time.

If the checkpoint contains a secret, nothing is written, unless a person has chosen how to treat it:

- `redact`: replace it in the conversation and the records
- `leave_out`: omit the files of the workdir that contain one
- `allow`: write everything unchanged
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from perdure.capsule import container, secret_search
from perdure.capsule.assembly import FrameCollector, gather
from perdure.capsule.manifest import PART, CapsuleWorkdir, Manifest
from perdure.capsule.secret_search import Scan, SecretFinding, SecretsFound
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import require_here
from perdure.engine.report import missed_checkpoint
from perdure.errors import CapsuleError, Conflict, NotFound
from perdure.host.git import Git
from perdure.host.redaction import Redactor
from perdure.model import Checkpoint, TaskRun, Workspace
from perdure.protocols import RunStore

__all__ = ["ExportRequest", "Exported", "export"]


class ExportRequest(Struct, frozen=True, kw_only=True):
    """The options of an export. `at` is the number of the checkpoint; 0 means the newest one."""

    target: Path
    at: int = 0
    redact: bool = False
    leave_out: bool = False
    allow: bool = False


class Exported(Struct, frozen=True, kw_only=True):
    """The result of an export. `unsearched` lists the files that were too large to be searched for
    secrets."""

    path: Path
    size: int
    manifest: Manifest
    findings: tuple[SecretFinding, ...] = ()
    unsearched: tuple[str, ...] = ()


def export(engine: Engine, ref: str, wanted: ExportRequest) -> Exported:
    """Write one checkpoint of a run as a capsule, and return a description of it. Raises NotFound
    if the run or checkpoint does not exist, Conflict if the target file exists, SecretsFound, or
    CapsuleError."""
    run = engine.store.get(ref)
    require_here(engine.host, run, "it cannot be exported")
    checkpoint = chosen(engine.store, run, wanted.at)
    if os.path.lexists(wanted.target):
        raise Conflict(
            f"the file {wanted.target} already exists", "choose another -o, or move the file away"
        )
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=engine.state) as directory:
        packing = Packing(engine, run, checkpoint, leave_out=wanted.leave_out)
        gathering = FrameCollector(
            Path(directory),
            Scan(redactor_of(engine.environ, engine.redactor, run), keep=not wanted.redact),
        )
        manifest = gather(engine, run, checkpoint, gathering, packing)
        findings = gathering.scan.findings
        if not wanted.allow:
            refuse_secrets(findings, redacts=wanted.redact, leaves_out=wanted.leave_out)
        try:
            _write(wanted.target, manifest, gathering)
        except OSError as error:
            raise CapsuleError(
                f"{wanted.target} cannot be written: {error.strerror or error}", "choose another -o"
            ) from error
    return Exported(
        path=wanted.target,
        size=wanted.target.stat().st_size,
        manifest=manifest,
        findings=tuple(findings),
        unsearched=packing.unsearched,
    )


def redactor_of(environ: Mapping[str, str], redactor: Redactor, run: TaskRun) -> Redactor:
    """Return a redactor for the secrets that perdure knows and those in the task's environment
    variables."""
    return redactor.also({**run.spec.env, **environ})


def refuse_secrets(findings: list[SecretFinding], *, redacts: bool, leaves_out: bool) -> None:
    """Raise SecretsFound if a secret was found that is not treated by the options. `redacts` treats
    secrets in conversations and records, `leaves_out` those in files of the workdir."""
    words = [finding for finding in findings if not finding.file]
    files = [finding for finding in findings if finding.file]
    hints = []
    if words and not redacts:
        hints.append("--redact replaces secrets in the conversation by asterisks")
    if files and not leaves_out:
        hints.append("--leave-out leaves these files out")
    if hints:
        left = (words if not redacts else []) + (files if not leaves_out else [])
        raise SecretsFound(
            left, f"{'; '.join(hints)}; --allow-secrets includes everything as it is"
        )


def chosen(store: RunStore, run: TaskRun, at: int) -> Checkpoint:
    """Return the checkpoint number `at` of a run, or its newest checkpoint if `at` is 0. Raises
    NotFound."""
    found = store.checkpoints(run.id)
    if not found:
        missed = missed_checkpoint(store.run_events(run.id))
        if missed:
            raise NotFound(
                f"{run.name} has no checkpoint, because none could be taken: {missed}",
                "perdure doctor",
            )
        raise NotFound(
            f"{run.name} has no checkpoint yet: none is taken before its first turn ends",
            f"perdure show {run.name}",
        )
    numbers = {checkpoint.number: checkpoint for checkpoint in found}
    if at and at not in numbers:
        raise NotFound(
            f"{run.name} has no checkpoint {at}; there are {', '.join(map(str, numbers))}",
            f"perdure checkpoints {run.name}",
        )
    if at:
        return numbers[at]
    return found[-1]


class Packing(Struct):
    """Packs the workdir of a checkpoint with git, and searches it for secrets. `earlier` describes
    the packs that the receiver already has; only later changes are then packed."""

    engine: Engine
    run: TaskRun
    checkpoint: Checkpoint
    leave_out: bool = False
    earlier: CapsuleWorkdir | None = None
    unsearched: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    findings: list[SecretFinding] = field(default_factory=list)

    def __call__(self, gathering: FrameCollector) -> CapsuleWorkdir:
        saved, place = self.checkpoint.workdir, self.run.workspace
        assert place is not None
        git_dir = Path(saved.git_dir)
        git = Git(cwd=git_dir, git_dir=git_dir, environ=self.engine.environ)
        base = self._base(git, place)
        scan = Scan(gathering.scan.redactor)
        known = [base] if base else []
        self.unsearched = tuple(secret_search.search(git, saved.commit, known, scan))
        secret_search.search_commits(git, saved.commit, known, scan)
        found = self.findings = scan.findings
        if self.leave_out:
            without = tuple(dict.fromkeys(secret_search.on_disk(finding.file) for finding in found))
        else:
            without = ()
        if "" in without:
            raise SecretsFound(
                [finding for finding in found if not secret_search.on_disk(finding.file)],
                "what is committed cannot be left out: rewrite that commit, or --allow-secrets "
                "includes everything as it is",
            )
        same = self.earlier is not None and self.earlier.base == base
        if same and self.earlier is not None and self.earlier.commit != saved.commit:
            earlier = self.earlier
        else:
            earlier = None
        have = earlier.tips if earlier is not None else ()
        with self.engine.workspaces.checkpoints.pack(
            place,
            saved.commit,
            without,
            began=base,
            have=have,
            blobs={
                finding.blob: secret_search.on_disk(finding.file) for finding in found if without
            },
        ) as packed:
            facts = packed.facts
            if packed.kept:
                raise CapsuleError(
                    f"{packed.kept[0]} cannot be left out: it is committed, in the history of the "
                    f"workdir",
                    "rewrite that commit first; or --allow-secrets includes everything as it is",
                )
            pack = gathering.add(f"packs/{len(have)}.pack", packed.file, size=PART)
            self.left_out = packed.left_out
        return CapsuleWorkdir(
            commit=facts.commit,
            base=base,
            shallow=facts.shallow,
            head=facts.head,
            branch=facts.branch,
            packs=(*(earlier.packs if earlier is not None else ()), pack),
            tips=(*have, facts.commit),
        )

    def _base(self, git: Git, place: Workspace) -> str:
        """Return the commit at which the run began, or an empty string if it is unknown. Commits
        before it are not packed.

        A clone that was made again may record a later commit as the beginning. Therefore the result
        is the merge base of the recorded commit and the run's own HEAD, if both are known.
        """
        began = self.engine.workspaces.began(place)
        if began and git.commit(began) and self.checkpoint.workdir.head:
            common = git.run(
                "merge-base", began, self.checkpoint.workdir.head, good=(0, 1, 128)
            ).text.partition("\n")[0]
            if common and git.commit(common):
                return common
        if place.base and (oid := git.commit(place.base)):
            return oid
        oldest = self.engine.store.checkpoints(self.run.id)[0].workdir.head
        if oldest and git.commit(oldest):
            return oldest
        return ""


def _write(target: Path, manifest: Manifest, gathering: FrameCollector) -> None:
    """Write the capsule to a temporary file, then link that file to the target. The target
    therefore never contains an incomplete capsule."""
    fd, staged = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb", buffering=1 << 20) as file:
            container.write(file, manifest, gathering)
            file.flush()
            os.fsync(file.fileno())
        os.link(staged, target)
    finally:
        Path(staged).unlink()
