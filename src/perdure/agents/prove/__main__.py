"""`python -m perdure.agents.prove REPORT.json ...`: records the answers of `perdure prove --json`
as the known ones of these versions."""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.agents.prove.known import record_answers

for report in sys.argv[1:]:
    record_answers(Path(report))
