"""The coherence benchmark on three files: it measures what it should, and its judges find
errors."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from bench.coherence import LINE, PARTS, PYTHON, Called, Coder, Result, played, python_errors
from perdure.agents.rehearsal import ChatMessage

FEW = {key: PARTS[key] for key in ("money", "product", "cart")}


@pytest.mark.journey
def test_later_files_know_earlier_ones_by_the_map_and_by_the_conversation() -> None:
    """The real Codex writes three files. In separate conversations the files do not fit together.
    With the project map, or in one conversation, they do."""
    results = []
    for arm in range(LINE + 1):
        directory = Path(tempfile.mkdtemp(prefix="pjc"))
        try:
            results.append(played(directory, "codex", PYTHON, arm, FEW))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    cold, mapped, one = results
    assert cold.errors and cold.right < 3
    assert (mapped.errors, mapped.right, one.errors, one.right) == (0, 3, 0, 3)
    assert cold.tokens == one.tokens == 0 < mapped.tokens


def test_the_model_uses_only_what_it_was_shown() -> None:
    """If the messages have a part of a file, the model uses its name there, with file, name and
    parameter. If they do not have it, the model makes a name up."""
    coder = Coder(PARTS, PYTHON)
    call = ChatMessage(
        "tool_call",
        "cat > shop/cash.py <<'EOF'\nclass Amount:\n    def __init__(self, pence: int) -> None: "
        "...\nEOF",
    )
    assert coder.known("money", [call]) == Called("cash", "Amount", "pence")
    shown = (
        "shop/cash.py:\n  class Amount\n    def __init__(self, pence: int) -> None\nshop/app.py:\n "
        " def run(laps: int) -> int"
    )
    assert coder.known("money", [ChatMessage("user", shown)]) == Called("cash", "Amount", "pence")
    assert coder.known("app", [ChatMessage("user", shown)]) == Called("app", "run", "laps")
    assert coder.known("product", [call]) is None
    made_up = {coder.made_up("money", key) for key in PARTS}
    assert len(made_up) > 6


def test_errors_are_counted_where_they_are_made(tmp_path: Path) -> None:
    """A missing module and a missing name count as different errors. A missing parameter is found.
    A file has no error only because it imports a broken file."""
    files = {
        "good.py": (
            "class Money:\n    def __init__(self, cents: int) -> None:\n        self.cents = "
            "cents\n"
        ),
        "two.py": "from shop.gone import X\nfrom shop.good import Cash\n",
        "call.py": "from shop.good import Money\nM = Money(pence=1)\n",
        "above.py": "from shop.call import M\n",
        "fine.py": "from shop.good import Money\nM = Money(cents=1).cents\n",
    }
    (tmp_path / "shop").mkdir()
    for name, text in files.items():
        (tmp_path / "shop" / name).write_text(text)
    found = dict(python_errors(tmp_path, sorted((tmp_path / "shop").glob("*.py"))))
    assert found == {
        "good.py": [],
        "two.py": ["missing", "wrong"],
        "call.py": ["wrong"],
        "above.py": [],
        "fine.py": [],
    }
    assert Result(files=5, missing=1, wrong=2, right=3).errors == 3
