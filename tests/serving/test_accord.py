"""What workers tell each other survives whatever lies in its place, and is never half of it."""

import pytest

from serving.accord import Accord

OWN = Accord(usual_model="colours", answering={"colours": 2}, pins={"colours": 2})


def test_what_was_written_last_is_read(tmp_path):
    """But for the usual model, which the first one says."""
    assert Accord.read(tmp_path) == Accord()
    OWN.write(tmp_path)
    assert Accord.read(tmp_path) == OWN
    Accord(usual_model="shades", answering={"colours": 3}).write(tmp_path)
    assert Accord.read(tmp_path) == Accord(usual_model="colours", answering={"colours": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["accord.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'{"other": 1}'])
def test_what_is_none_counts_as_none(tmp_path, data):
    """It is nobody's word."""
    (tmp_path / "accord.json").write_bytes(data)
    assert Accord.read(tmp_path) == Accord()


def test_where_there_is_no_room_nothing_is_said(tmp_path):
    """Serving goes on."""
    OWN.write(tmp_path / "gone")
    assert Accord.read(tmp_path / "gone") == Accord()
