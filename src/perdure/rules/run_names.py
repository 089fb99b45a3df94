"""Suggests names for runs that are easy to say and type: `brisk-otter`. Pure except for the random
choice."""

from __future__ import annotations

import random

_HOW = (
    "able amber apt bold brave brief bright brisk calm clear clever cosy crisp deft eager early "
    "fair fast fine firm fond free fresh gentle glad golden grand green happy hardy jolly keen "
    "kind lively lucky merry mild neat noble plain proud quick quiet rapid ready rosy round sharp "
    "shiny silent silver simple sleek smart snug solid spry steady stout sunny sure swift tidy "
    "true vivid warm wise"
).split()
_WHO = (
    "alder ant ash badger bear beaver beech birch bison cedar clover crane crow deer dove eagle "
    "elm falcon fern finch fir fox gull hare hawk heron holly ibis iris ivy jay kite lark larch "
    "lemur lily lynx maple marten mink mole moss moth newt oak olive orchid otter owl panda perch "
    "pike pine plover poppy quail raven reed robin rook sage seal shrew sloth sparrow stork swan "
    "swift tern thrush tiger toad trout tulip vole walrus weasel willow wolf wren yew"
).split()


def suggest(tries: int) -> str:
    """Return a random name. `tries`: the number of names that were suggested before. After five
    tries a number is added to the name, so that a free name is always found."""
    name = f"{random.choice(_HOW)}-{random.choice(_WHO)}"
    if tries < 5:
        return name
    return f"{name}-{random.randrange(2, 10_000)}"
