"""`plan run` and `plan retry`: run a plan in this process, with a line for each task.

Ctrl-C stops the agents in good order, as `perdure stop` would; another `plan run` continues where
they stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import Stopper, open_engine, settings
from perdure.cli.runs.plan import checked_plan
from perdure.cli.runs.plan_progress import PlanProgress
from perdure.cli.runs.run import warn
from perdure.config import Settings

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine
    from perdure.rules.plan import PlanRun


def run(arguments: argparse.Namespace) -> int:
    """Run `plan run FILE`."""
    from perdure.engine import plans
    from perdure.engine.plans.reader import seed_of

    chosen = settings()
    file = Path(arguments.file).absolute()
    plan, seed = checked_plan(file, chosen), seed_of(chosen, Path.cwd())

    def work(engine: Engine, began: Callable[[PlanRun], None]) -> PlanRun:
        return plans.run(engine, plan, seed, file, arguments.jobs, began)

    return _followed(arguments, chosen, work)


def retry(arguments: argparse.Namespace) -> int:
    """Run `plan retry NAME [TASK]`."""
    from perdure.engine import plans
    from perdure.engine.plans.reader import is_file, seed_of

    chosen = settings()
    file = Path(arguments.file).absolute()
    changed = (
        (checked_plan(file, chosen), seed_of(chosen, Path.cwd()), file)
        if is_file(arguments.file)
        else None
    )

    def work(engine: Engine, began: Callable[[PlanRun], None]) -> PlanRun:
        return plans.retry(
            engine, arguments.file, arguments.task or "", arguments.jobs, began, changed
        )

    return _followed(arguments, chosen, work)


def _followed(
    arguments: argparse.Namespace,
    chosen: Settings,
    work: Callable[[Engine, Callable[[PlanRun], None]], PlanRun],
) -> int:
    from perdure.engine import plans
    from perdure.engine.plans.status import standing
    from perdure.engine.report import report_of
    from perdure.engine.service import probe_of

    progress = None if arguments.quiet else PlanProgress()
    with Stopper() as stopper:
        engine = stopper.attach(open_engine(chosen, observers=[progress] if progress else []))
        with progress or nullcontext():
            plan = work(engine, progress.introduce(engine) if progress else lambda plan: None)
        runs = [
            stand.run for stand in standing(engine.store, plan).values() if stand.run is not None
        ]
        reports = [report_of(engine.store, run) for run in runs]
        report, code = (
            plans.report_of(engine.store, plan, probe_of(engine)),
            plans.exit_code(engine, plan),
        )
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    if progress:
        progress.conclude(report)
    for each in reports:
        warn(each)
    return code
