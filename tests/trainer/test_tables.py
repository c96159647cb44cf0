"""What the commands print, on a terminal of 80 columns."""

from io import StringIO

from rich.console import Console

from bundle.manifest import Candidate
from trainer.metrics import wilson
from trainer.tables import print_candidates


def test_verdict_on_every_candidate_is_read_in_full_on_a_narrow_terminal() -> None:
    """A reason is a sentence, and a column of what is left beside six numbers would cut its words."""
    verdict = "loses 1.96 points, 3 of 153 pictures"
    row = Candidate(
        name="percentile per channel",
        accuracy=wilson(143, 153),
        agreement=0.967,
        latency_ms=114.7,
        latency_batch8_ms=833.1,
        size_bytes=148_000_000,
        verdict=verdict,
    )
    out = StringIO()
    print_candidates(Console(file=out, width=80), [row])
    assert f"percentile per channel: {verdict}\n" in out.getvalue()
    assert all(text in out.getvalue() for text in ("0.9346", "96.7%", "114.7", "833.1", "148.0"))
    assert "…" not in out.getvalue()
