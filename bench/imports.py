"""A program for `coherence`: it executes every import of one Python file, then the file, and prints
the file's errors as a JSON list.

`missing`: a module does not exist. `wrong`: a name is not in its module, or is used with a
parameter or attribute that it does not have. An error that is raised in another file, while that
file is imported, counts only there.
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
    """Execute the code. Return `missing`, `wrong`, or an empty string if there was no error or it
    was raised in another file."""
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
