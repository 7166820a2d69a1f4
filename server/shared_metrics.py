"""Metrics of several controller processes as one: each counts into a file that all can read.

Built on prometheus_client's multiprocess mode, with a process's place (0 to N - 1) where the library has its pid: a
process that is started anew goes on counting where the last one at its place stopped, and the files stay as many as the
processes. The library knows one folder a process, by its environment name; without that name nothing here applies.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own name


def share_metrics(folder: Path, place: int) -> None:
    """In a process of several, before it makes its first metric."""
    os.environ[_FOLDER] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: place)
    # What is removed here stays in the file; `shared_exposition` leaves it out.
    warnings.filterwarnings("ignore", "Removal of labels has not been implemented", UserWarning)


def forget_gauges(folder: Path, place: int) -> None:
    """The process at this place is gone: what it had under way counts no more."""
    mark_process_dead(place, str(folder))


def shared_exposition(workers: Collection[str], live: Iterable[Collector]) -> bytes | None:
    """Everybody's metrics; None where this process is alone. Of metrics by worker only those of `workers`. `live` are
    this process's own, made when they are asked for: in no file, and about the same in each process."""
    folder = os.environ.get(_FOLDER)
    if not folder:
        return None
    registry = CollectorRegistry()
    registry.register(_Joined(MultiProcessCollector(None, folder), frozenset(workers)))
    for collector in live:
        registry.register(collector)
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, files: MultiProcessCollector, workers: frozenset[str]) -> None:
        self._files = files
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        for metric in self._files.collect():
            metric.samples = [one for one in metric.samples if one.labels.get("worker", "") in {*self._workers, ""}]
            yield metric
