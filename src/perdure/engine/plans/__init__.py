"""Plans at work: many tasks, one conversation. Called by `perdure plan` and by programs.

Each task becomes an ordinary run, made when it may begin, so that every verb on runs works on it.
`creation` stores the plan as it was begun and takes in what was changed in its file since; `status`
reads how far it is; `starts` makes a task's run: it goes on in the strand, or forks it, with the
files of what it needs; `shutdown` keeps where a task left its workdir and conversation; `driver`
does as much at once as may be; `conclusion` brings the branches together and checks the result;
`budget` is what all of it may cost; `prompts` says how a plan stands.

Everything that was acknowledged is in the store and in git, and nothing in the process only: a plan
that is killed anywhere and run again goes on. One process drives a plan at a time, by a lease.
"""

from __future__ import annotations

from perdure.engine.plans.creation import begin
from perdure.engine.plans.driver import exit_code, resume, retry, run
from perdure.engine.plans.prompts import report_of

__all__ = ["begin", "exit_code", "report_of", "resume", "retry", "run"]
