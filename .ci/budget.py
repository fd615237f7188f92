"""The line budget: the package must be readable in an afternoon. Comments, docstrings and blank lines are free.

Run: python .ci/budget.py
"""

import ast
import sys
from pathlib import Path

LIMIT, FILE_LIMIT = 6_000, 400


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
    paths = [path for path in Path("urc_sweep").rglob("*") if path.suffix in (".py", ".js", ".css", ".html")]
    files = {path: code_lines(path) for path in paths}
    total = sum(files.values())
    long = [f"{path}: {lines} lines of code, limit {FILE_LIMIT}" for path, lines in files.items() if lines > FILE_LIMIT]
    print(f"line budget: {total} of {LIMIT} lines of code in {len(files)} files", *long, sep="\n")
    return 1 if total > LIMIT or long else 0


if __name__ == "__main__":
    sys.exit(main())
