"""The proxy's own response says what it has to, with a body of the length that it says."""

import pytest

from penstock_proxy.errors import FAULTS, Fault
from penstock_proxy.http1.error_response import error_response
from penstock_proxy.http1.response import parse_response


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.status], ids=lambda f: f.kind)
@pytest.mark.parametrize("has_body", [True, False])
def test_every_fault_has_a_response_that_can_be_read(fault: Fault, *, has_body: bool) -> None:
    data, size = error_response(fault, 7, "close", has_body=has_body)
    head, _, body = data.partition(b"\r\n\r\n")
    response = parse_response(head + b"\r\n\r\n")
    text = f"{fault.text}\n".encode()
    assert (response.status, response.length, response.close) == (fault.status, len(text), True)
    assert (body, size) == ((text, len(text)) if has_body else (b"", 0))
    assert (b"\r\nRetry-After: 7\r\n" in head + b"\r\n") is (fault.status == 503)


def test_a_connection_that_is_kept_needs_no_word() -> None:
    assert b"Connection" not in error_response(FAULTS[0], 1)[0]
    assert b"\r\nConnection: keep-alive\r\n" in error_response(FAULTS[0], 1, "keep-alive")[0]
