"""Every async test runs on asyncio and on trio, some of them on clocks that jump instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


class _JumpingSelector(selectors.BaseSelector):
    """Wraps a selector: where it would wait for a timer, it moves the loop's clock there instead."""

    def __init__(self) -> None:
        self._inner = selectors.DefaultSelector()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._inner.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return self._inner.select(5)  # nothing will ever happen: let the test fail by its own deadline
        self.skipped += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def close(self) -> None:
        self._inner.close()

    def get_map(self) -> Any:
        return self._inner.get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time, which stands still while code runs: no thread and no child may be waited for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    match request.param:
        case "virtual-asyncio":
            return "asyncio", {"loop_factory": VirtualTimeLoop}
        case "virtual-trio":
            return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
        case name:
            return name, {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Async tests run on both backends; in a module with `VIRTUAL_TIME = True`, on both virtual clocks.

    A module whose tests bring the other backend in themselves names its own in `BACKENDS`.
    """
    if "anyio_backend" in metafunc.fixturenames:
        virtual = getattr(metafunc.module, "VIRTUAL_TIME", False)
        names = ["virtual-asyncio", "virtual-trio"] if virtual else ["asyncio", "trio"]
        names = getattr(metafunc.module, "BACKENDS", names)
        metafunc.parametrize("anyio_backend", names, indirect=True)
