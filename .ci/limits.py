"""Measure the size of the shipped code's files and functions, and fail where a limit is passed.

In: the four package folders. Out: a report on stdout; exit code 1 when a file or a function is too long. The complexity
of functions is measured by ruff.
"""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engines", "runtime", "calibration", "export")
FILE_LINES_GOAL, FILE_LINES_LIMIT = 300, 400
FUNCTION_LINES_GOAL, FUNCTION_LINES_LIMIT = 12, 60


def function_lengths(source: str) -> list[tuple[str, int, int]]:
    """Name, first line and number of lines of every function; decorators and docstrings count."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1) for node in nodes]


def check(root: Path) -> tuple[list[str], list[str]]:
    """Measure the packages under `root`.

    Returns:
        The report's lines, and the violations.
    """
    report, violations, lengths = [], [], []
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        lines = len(source.splitlines())
        if lines > FILE_LINES_LIMIT:
            violations.append(f"{name}: {lines} lines, at most {FILE_LINES_LIMIT} are allowed; split it")
        elif lines > FILE_LINES_GOAL:
            report.append(f"{name}: {lines} lines, above the goal of {FILE_LINES_GOAL}")
        for function, line, count in function_lengths(source):
            lengths.append(count)
            if count > FUNCTION_LINES_LIMIT:
                violations.append(
                    f"{name}:{line}: {function} has {count} lines, at most {FUNCTION_LINES_LIMIT} are allowed"
                )
    if lengths:
        report.append(
            f"{len(lengths)} functions: median {statistics.median(lengths):g} lines (goal {FUNCTION_LINES_GOAL}), "
            f"longest {max(lengths)}"
        )
    return report, violations


def main() -> int:
    """Print the report; 1 when there is a violation."""
    report, violations = check(ROOT)
    print("\n".join([*report, *violations]))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
