"""Every failure has one row: a name for the metric, a status for the client, a side to blame."""

from http import HTTPStatus

import pytest

from penstock_proxy.errors import BAD_REQUEST, FAULTS, Fault, RejectedError, Side


def test_no_two_faults_share_a_name() -> None:
    kinds = [fault.kind for fault in FAULTS]
    assert len(set(kinds)) == len(kinds) > 0
    assert "ok" not in kinds


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_a_fault_can_be_told_or_has_nothing_to_tell(fault: Fault) -> None:
    if fault.status == 0:
        assert fault.text == ""
    else:
        assert HTTPStatus(fault.status).phrase
        assert fault.text.isascii()
        assert fault.text.isprintable()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_the_side_to_blame_and_the_status_agree(fault: Fault) -> None:
    blamed = {
        Side.CLIENT: fault.status == 0 or fault.status // 100 == 4 or fault.status in (501, 505),
        Side.WORKER: fault.status in (502, 504),
        Side.FRONT: fault.status in (0, 503, 504),
    }
    assert blamed[fault.side]


def test_a_refusal_carries_its_fault_and_its_reason() -> None:
    error = RejectedError(BAD_REQUEST, "repeated host")
    assert (error.fault, error.reason, str(error)) == (
        BAD_REQUEST,
        "repeated host",
        "repeated host",
    )
