"""What an operator wants and does not get: a reason not to start, and later a complaint."""

from pathlib import Path

import pytest
import structlog

from serving.accord import Accord
from serving.complaints import Complaints
from serving.errors import StartupError
from serving.versions import NEWEST, Shadowing, VersionPolicy
from serving.wishes import Wishes

MODELS = Path("models")
PIN = {"colours": 2}


def wishes(*, default_model="", accord=None, **policy):
    return Wishes(
        VersionPolicy(**policy),
        default_model=default_model,
        models=MODELS,
        complaints=Complaints(),
        accord=accord,
    )


def complaints(wanted, there, **facts):
    """What is logged after one look at the model."""
    with structlog.testing.capture_logs() as lines:
        wanted.complain("colours", there, **facts)
    return [line["event"] for line in lines]


@pytest.mark.parametrize(
    "wanted",
    [{"default_model": "shades"}, {"pins": {"shades": 1}}, {"shadows": {"shades": Shadowing(version=1, share=1.0)}}],
)
def test_a_model_that_is_wanted_must_be_here_at_a_start(wanted):
    """A worker that comes back only complains."""
    with pytest.raises(StartupError, match=r"^models: no model 'shades', found colours$"):
        wishes(**wanted).begin(["colours"])
    with structlog.testing.capture_logs() as lines:
        wishes(**wanted, accord=Accord()).begin(["colours"])
    assert [line["event"] for line in lines] == ["models: no model 'shades', found colours"]


def test_the_default_and_pinned_models_must_answer_at_a_start():
    """Not when a worker comes back alone: it serves what it can."""
    wanted = {"default_model": "shades", "pins": PIN}
    names = ["colours", "shades", "others"]
    fresh, back = wishes(**wanted), wishes(**wanted, accord=Accord())
    for one in (fresh, back):
        one.begin(names)
    assert fresh.missed(["others", "colours", "shades"]) == ["shades", "colours"]
    assert fresh.missed(["others"]) == []
    assert back.missed(names) == []


def test_a_pin_is_tried_alone_and_by_a_worker_that_comes_back_first():
    """Without one the newest is tried first."""
    assert wishes().tries("colours", [1, 2, 3]) == [3, 2, 1]
    fresh, back = wishes(pins=PIN), wishes(pins=PIN, accord=Accord())
    for one in (fresh, back):
        one.begin(["colours"])
    assert fresh.tries("colours", [1, 2, 3]) == [2]
    assert back.tries("colours", [1, 2, 3]) == [2, 3, 1]
    with pytest.raises(StartupError, match=r"pinned to version 2, found 1, 3; change the pin"):
        fresh.tries("colours", [1, 3])
    assert back.tries("colours", [1, 3]) == [3, 1]


def test_a_worker_that_comes_back_beside_others_answers_as_they_do_or_not_at_all():
    """Whatever is pinned or new by now: all of them will see that at their next look."""
    back = wishes(pins=PIN, accord=Accord(answering={"colours": 1, "shades": 4}))
    back.begin(["colours", "shades", "others"])
    assert back.tries("colours", [1, 2, 3]) == [1]
    assert back.tries("colours", [2, 3]) == []
    assert back.tries("others", [1, 2]) == [2, 1]
    assert back.missed(["others"]) == []
    assert back.missed(["others", "colours"]) == ["colours"]


def test_pins_that_cannot_be_read_are_those_of_the_others(tmp_path):
    """Where none of them serves nobody knows what is to answer."""
    policy = {"pins_file": tmp_path / "pins"}
    beside = wishes(**policy, accord=Accord(answering={"colours": 2}, pins=PIN))
    with structlog.testing.capture_logs() as lines:
        beside.begin(["colours"])
    assert beside.pin("colours") == 2
    assert [line["event"] for line in lines] == [
        f"pins stay as they are: {tmp_path}/pins: No such file or directory; wanted a file of pins, empty for none"
    ]
    for alone in (None, Accord(pins=PIN)):
        with pytest.raises(StartupError, match="wanted a file of pins"):
            wishes(**policy, accord=alone).begin(["colours"])


def test_a_pin_that_does_not_hold_is_complained_of_unless_its_version_is_on_its_way():
    """It answers by another one meanwhile."""
    wanted = wishes(pins=PIN)
    wanted.begin(["colours"])
    assert complaints(wanted, [1, 2], answering=2, may_come=False) == []
    assert complaints(wanted, [1, 2], answering=1, may_come=True) == []
    assert complaints(wanted, [1], answering=1, may_come=False) == [
        "colours: pinned to version 2, which cannot serve; 1 does"
    ]


def test_a_shadow_that_cannot_be_is_complained_of():
    """One that is not here, and the newest one where that answers itself."""
    three = wishes(shadows={"colours": Shadowing(version=3, share=0.5)})
    assert complaints(three, [1, 3], answering=1, may_come=False) == []
    assert complaints(three, [1, 2], answering=2, may_come=False) == [
        "colours: version 3 is to shadow it, and is not here"
    ]
    newest = {"shadows": {"colours": Shadowing(version=NEWEST, share=0.5)}}
    (told,) = complaints(wishes(**newest), [1, 2], answering=2, may_come=False)
    assert told.startswith("colours: the newest version is to shadow what answers, and does itself")
    pinned = wishes(pins=PIN, **newest)
    pinned.begin(["colours"])
    assert complaints(pinned, [2, 3], answering=2, may_come=False) == []
