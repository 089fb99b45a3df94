"""Records the results of `perdure prove --json` as known results of the tested versions. Run as
`python -m perdure.agents.prove REPORT.json ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.agents.prove.rows import record_answers

for report in sys.argv[1:]:
    record_answers(Path(report))
