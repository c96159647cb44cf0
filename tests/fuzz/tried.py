"""How much is tried: a short, repeatable round, or with FUZZ_EXAMPLES=20000 a long one with new inputs every time."""

import os
from collections import Counter

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
ROUND = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LARGE_ROUND = settings(ROUND, max_examples=EXAMPLES or 500)  # for what takes a millisecond
COUNTS: Counter[str] = Counter()
