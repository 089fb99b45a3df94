"""Reports one run to its forge, in a process that can be killed. Arguments: DIRECTORY FORGE-URL
CLONE-URL RUN."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.posting.bench import answering_of, client, open_engine


def main(top: str, url: str, clone: str, run_id: str) -> None:
    engine = open_engine(Path(top))
    api = client(url)
    answering_of(engine, clone, lambda: api, publish="pull").answer(run_id)
    api.close()
    engine.store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
