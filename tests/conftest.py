"""What all tests share, and how they are spread where they run in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# Machines may be slow and busy.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")
pytest_plugins = [f"tests.fixtures.{name}" for name in ("documented", "origin", "pictures", "system", "tokenizers")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where tests run in several processes, those of a file stay together, for its fixtures, and those of tests/e2e,
    which share one system. Files are taken in their order: those that take longest come early."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/e2e" if Path(file).parent == Path("tests/e2e") else file

    config.option.loadscopereorder = False
    return ByFile(config, log)
