"""Agents' homes kept on a volume: moved there without losing a file, found there again, given back.

Called by `perdure home` and `perdure entrypoint`; the attempt asks `Remembered` where a home is.
Guarantees, at every kill:

- no byte is ever deleted: a tree is copied, its copy is compared and made durable, and only then it
  is moved aside, where it stays (`*.pre-perdure-<time>`); of two versions of a file both are kept;
- the place of a home changes in one atomic step, and a call that was killed is completed by the
  next one;
- nothing is moved while an agent is at work on it, and nothing is begun on a volume that is not
  there or is another one.

`remembered` (where a home is: every start asks) and `volume` are light; what moves homes is
imported by those who move them.
"""
