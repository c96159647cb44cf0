"""What an operator has to mend is logged once while it lasts, and again when it is back."""

import structlog

from serving.complaints import Complaints


def test_a_complaint_is_logged_when_it_begins_and_when_it_is_back() -> None:
    complaints = Complaints()
    with structlog.testing.capture_logs() as lines:
        complaints.tell("no models")
        complaints.tell("no models")
        complaints.look_again()
        complaints.tell("no models")  # it lasts
        complaints.look_again()
        complaints.look_again()  # it was not there
        complaints.tell("no models")
    assert [(line["event"], line["log_level"]) for line in lines] == [("no models", "error")] * 2


def test_each_complaint_stands_for_itself() -> None:
    complaints = Complaints()
    with structlog.testing.capture_logs() as lines:
        complaints.tell("one")
        complaints.look_again()
        complaints.tell("one")
        complaints.tell("another")
    assert [line["event"] for line in lines] == ["one", "another"]
