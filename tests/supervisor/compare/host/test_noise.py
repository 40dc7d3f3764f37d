"""How quiet a machine was is measured by processes that spin and one that sleeps."""

import pytest

from penstock_supervisor.compare.host import noise


async def test_shares_and_a_delay_are_measured() -> None:
    found = await noise.measure()
    assert found is not None
    assert 0 <= found.stolen < 1
    assert found.varies >= 0
    assert found.late_s >= 0


def test_equal_work_that_is_equally_long_does_not_vary() -> None:
    assert noise._variation([2.0] * 20) == 0
    # One piece in twenty is an outlier, and no variation.
    assert noise._variation([2.0] * 19 + [9.0]) == 0
    assert noise._variation([1.0, 2.0, 3.0] * 10) == pytest.approx(0.5)


def test_a_process_that_spins_and_one_that_sleeps_report_for_themselves() -> None:
    assert set(noise.spin(0.02)) == {"stolen", "varies"}
    assert noise.still(0.02)["late_s"] >= 0
