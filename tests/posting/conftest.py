from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posting.bench import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with make_bench(tmp_path) as found:
        yield found
