"""What is wrong with a transcript, and a mended copy of it. Pure: bytes in, a diagnosis and new
bytes out.

Called by the drivers (`AgentDriver.mend`), one room a CLI over the shared reading of lines. Three
rules:

- Only what the CLI, or the model's service, does not take by itself is changed: what each tolerates
  was tried on the real one (docs/reference/mending.md), and a change that is not needed is a risk.
- Every change is in the edit log, with its line and its reason. No word of the conversation is
  invented: what is put in says that perdure put it in.
- Nothing is written here. The original stays byte for byte; a mended copy is trusted only after the
  installed CLI has gone on from it against the rehearsal (`perdure.agents.proof`).
"""

from __future__ import annotations

from perdure.rules.transcript_repair.findings import Edit, Finding, Harm, Mended, Trouble

__all__ = ["Edit", "Finding", "Harm", "Mended", "Trouble"]
