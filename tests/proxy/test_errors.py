"""Every failure has one row: a name for the metric, a status for the client, a side to blame."""

import re

import pytest

from penstock_proxy.errors import (
    BAD_REQUEST,
    BODY_TOO_LARGE,
    FAULTS,
    TARGET_TOO_LONG,
    Fault,
    RejectedError,
    Side,
    status_line,
)


def test_no_two_faults_share_a_name() -> None:
    kinds = [fault.kind for fault in FAULTS]
    assert len(set(kinds)) == len(kinds) > 0
    assert "ok" not in kinds


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_a_fault_has_a_valid_status_line_and_text_or_neither(fault: Fault) -> None:
    if fault.status == 0:
        assert fault.text == ""
    else:
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [A-Z][A-Za-z -]+\r\n", status_line(fault))
        assert fault.text.isascii()
        assert fault.text.isprintable()


def test_reason_phrases_are_those_of_the_standard_with_every_python() -> None:
    assert status_line(BODY_TOO_LARGE) == "HTTP/1.1 413 Content Too Large\r\n"
    assert status_line(TARGET_TOO_LONG) == "HTTP/1.1 414 URI Too Long\r\n"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_the_side_to_blame_and_the_status_agree(fault: Fault) -> None:
    fault_of = {
        Side.CLIENT: fault.status == 0 or fault.status // 100 == 4 or fault.status in (501, 505),
        Side.WORKER: fault.status in (502, 503, 504),
        Side.PROXY: fault.status in (0, 503, 504),
    }
    assert fault_of[fault.side]


def test_a_refusal_carries_its_fault_and_its_reason() -> None:
    error = RejectedError(BAD_REQUEST, "repeated host")
    assert (error.fault, error.reason, str(error)) == (
        BAD_REQUEST,
        "repeated host",
        "repeated host",
    )
