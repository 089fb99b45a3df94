"""Finds damage in a transcript, and makes a repaired copy of it.

Pure: bytes in, a diagnosis and new bytes out. Called by the drivers (`AgentDriver.mend`). There is
one module for each CLI; they share the reading of lines (`records`). Three rules:

- Only content that the CLI, or the model's service, does not accept is changed. The behavior of
  both was tried on the real programs (docs/reference/mending.md). A change that is not needed is a
  risk.
- Every change is in the edit log, with its line and its reason. No word of the conversation is
  invented: an inserted record says that perdure inserted it.
- Nothing is written here. The original is kept byte for byte.

A repaired copy is trusted only after the installed CLI has continued from it against the rehearsal
(`perdure.agents.proof`).
"""

from __future__ import annotations

from perdure.rules.transcript_repair.findings import Edit, Finding, Harm, Mended, Trouble

__all__ = ["Edit", "Finding", "Harm", "Mended", "Trouble"]
