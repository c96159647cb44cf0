"""Whatever a file holds: model input, or the ImageError that fits. No other error, no crash, no lying allocation."""

import pytest
import tried
from broken_files import WHOLE, broken_files
from hypothesis import example, given
from hypothesis import strategies as st
from victim import Victim

from bundle import errors

CODES = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
SPECS = st.builds(
    lambda crop_px, more_px, interpolation: {
        "crop_px": crop_px,
        "resize_px": crop_px + more_px,
        "interpolation": interpolation,
    },
    st.integers(1, 300),
    st.integers(0, 80),
    st.sampled_from(["bicubic", "bilinear"]),
)


@pytest.fixture(scope="module")
def victim():
    made = Victim()
    yield made
    made.close()


@pytest.mark.parametrize("data", WHOLE, ids=range(len(WHOLE)))
def test_whole_files_are_read(victim, data):
    """Or the broken ones would prove nothing; only float TIFFs are refused by rule."""
    line = victim.ask({"crop_px": 24, "resize_px": 32, "interpolation": "bicubic"}, data)
    assert line == "ok" or (line == "UNSUPPORTED_FORMAT" and data[:2] == b"II")


@tried.LARGE_ROUND
@given(data=broken_files(), spec=SPECS)
def test_broken_files_are_read_or_refused(victim, data, spec):
    """The victim has 100 MB to spare: a header that lies does not get them."""
    tried.COUNTS["broken picture files"] += 1
    line = victim.ask(spec, data)
    assert line == "ok" or line in CODES, (line, data)


@tried.ROUND
@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), colour=st.integers(0, 255), spec=SPECS)
@example(size=(1, 700), colour=255, spec={"crop_px": 300, "resize_px": 300, "interpolation": "bicubic"})
def test_every_size_becomes_every_crop(victim, size, colour, spec):
    """And a picture of one colour keeps it."""
    tried.COUNTS["sizes of pictures and crops"] += 1
    assert victim.ask({**spec, "size": size, "colour": colour}) == "ok"
