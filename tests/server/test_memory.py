"""Memory that requests with pictures come and go in stays with the controller."""

from __future__ import annotations

import subprocess
import sys

# Page faults while blocks of the size of a picture's body are taken and freed, 100 times 4 of 2 MiB.
_FAULTS = """
import resource
from server.memory import keep_freed_memory
kept = keep_freed_memory()
def bodies():
    return [b"x" * (2 * 1024 * 1024 + place) for place in range(4)]
bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before if kept else 0)
"""


def test_bodies_of_megabytes_cost_fresh_pages_once_only():
    ran = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, timeout=60, check=True)
    assert int(ran.stdout) < 20_000  # of 204,800 were each of them new
