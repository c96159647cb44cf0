"""Say at the end how many inputs were tried."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not: `import tried`

import tried


def pytest_terminal_summary(terminalreporter):
    """One line a kind of input."""
    for name, count in tried.COUNTS.items():
        terminalreporter.write_line(f"fuzz: {count:,} {name}")
