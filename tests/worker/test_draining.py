"""A worker takes no requests while an operator holds it, and says so; that can be taken back, unlike its own end."""

from __future__ import annotations

import pytest

from server.protocol.errors import ApiError
from worker.gate import Gate


def test_a_held_gate_lets_nobody_in_until_it_is_open_again() -> None:
    gate = Gate(4, 4)
    with gate.enter():
        assert gate.hold(True)
        assert gate.draining
        assert gate.requests == 1  # which may finish
        with pytest.raises(ApiError) as refused:
            gate.enter()
        assert refused.value.status == 503
    assert not gate.hold(True)  # no change
    assert gate.hold(False)
    with gate.enter():
        assert not gate.draining


def test_a_worker_that_stops_is_not_opened_by_an_operator() -> None:
    gate = Gate(4, 4)
    gate.drain()
    gate.hold(True)
    gate.hold(False)
    assert gate.draining
