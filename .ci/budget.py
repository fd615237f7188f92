"""The line budget: the package must be readable in an afternoon. Comments, docstrings and blank lines are free.

The core, how a number is made and kept, is counted apart from the room that shows it and from the report's page (HTML,
CSS, JS): who reads the one need not read the others.

Run: python .ci/budget.py
"""

import ast
import sys
from pathlib import Path

LIMITS = {"core": 6_000, "show": 2_500, "page": 1_200}
FILE_LIMIT = 400


def code_lines(path: Path) -> int:
    """Return how many lines of a file are neither blank nor comment nor docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        comments = ("//", "/*", "<!--")
        return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith(comments))
    tree = ast.parse(text)
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            first = node.body[0]
            prose.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in prose)


def main() -> int:
    shown = list(Path("urc_sweep/show").rglob("*.py"))
    files = {"core": [path for path in Path("urc_sweep").rglob("*.py") if path not in shown], "show": shown}
    files["page"] = [path for path in Path("urc_sweep").rglob("*") if path.suffix in (".js", ".css", ".html")]
    over = False
    for kind, paths in files.items():
        lines = {path: code_lines(path) for path in paths}
        total = sum(lines.values())
        print(f"line budget: {kind}: {total} of {LIMITS[kind]} lines in {len(paths)} files")
        long = [f"{path}: {count} lines, limit {FILE_LIMIT}" for path, count in lines.items() if count > FILE_LIMIT]
        print(*long, sep="\n", end="\n" if long else "")
        over = over or bool(long) or total > LIMITS[kind]
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
