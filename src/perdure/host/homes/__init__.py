"""Keeps agents' homes on a volume: moves them there without losing a file, finds them again, and
moves them back.

Called by `perdure home` and `perdure entrypoint`; the attempt asks `LinkedHomes` where a home is.
Guarantees, even if the process is killed at any point:

- No byte is ever deleted. A tree is copied, and the copy is compared and made durable. Only then is
  the tree moved aside, where it stays (`*.pre-perdure-<time>`). If a file has two versions, both
  are kept.
- The location of a home changes in one atomic step. If a call was killed, the next call completes
  the change.
- Nothing is moved while an agent uses it. No agent starts if the volume is missing, or if another
  volume is in its place.

Two modules are cheap to import: `linked_homes`, from which every start of an agent gets the
location of the home, and `volume`. The modules that move homes are imported only when they are
needed.
"""
