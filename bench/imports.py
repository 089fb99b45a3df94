"""A program for `coherence`: carries out every import of one Python file, then the file, and prints
its errors as a JSON list.

`missing`: the module is not there; `wrong`: the name is not in it, or is used with a parameter or
attribute that it has not. An error that another file raises while it is imported is that file's.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from pathlib import Path


def main(name: str) -> list[str]:
    sys.path.insert(0, str(Path.cwd()))
    tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = [error for node in imports if (error := carried_out(ast.Module([node], [])))]
    return found or [error for error in [carried_out(tree)] if error]


def carried_out(tree: ast.Module) -> str:
    """`missing`, `wrong`, `other` for what another file did, or nothing."""
    try:
        exec(compile(tree, "<this file>", "exec"), {"__name__": "checked"})
    except (ImportError, AttributeError, NameError, TypeError) as error:
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if any(place.startswith(str(Path.cwd())) for place in places):
            return ""
        return "missing" if isinstance(error, ModuleNotFoundError) else "wrong"
    return ""


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
