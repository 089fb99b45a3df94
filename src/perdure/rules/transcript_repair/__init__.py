"""Finds damage in a transcript, and makes a repaired copy of it.

Pure: takes bytes, returns a diagnosis and new bytes. The drivers call it (`AgentDriver.repair`).
There is one module for each CLI, and `records` reads lines for all of them. Three rules:

- Only content that the CLI or the model's service does not accept is changed, because an unneeded
  change is a risk. The behavior of the CLIs and of the services was tested with the real programs
  (docs/reference/mending.md).
- Every change is in the edit log, with its line and its reason. No word of the conversation is
  invented: an inserted record says that perdure inserted it.
- Nothing is written here. The original is kept byte for byte.

A repaired copy is trusted only after the installed CLI has continued from it in a test with a
scripted model server (`perdure.agents.proof`).
"""

from __future__ import annotations

from perdure.rules.transcript_repair.findings import Edit, Finding, Harm, RepairResult, Trouble

__all__ = ["Edit", "Finding", "Harm", "RepairResult", "Trouble"]
