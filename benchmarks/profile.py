"""`tephra bench profile`: where a step's time goes, by parts. The engine's own runner, without HTTP and without others.

A tile is encoded, a prompt prefilled, answers decoded; each several times as it is, for its time, and several times
under torch's profiler, for the shares. A profiler slows small operations down, so shares are laid over the plain time.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.results import Rows
from model.checkpoint import load_checkpoint
from model.llava import LlavaModel
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.features import FeatureCache
from worker.engine.paged_attention import KvCache
from worker.engine.protocol import EngineRequest, SamplingParams
from worker.engine.runner import Runner
from worker.engine.scheduler import Scheduler, Step
from worker.engine.sequence import Sequence
from worker.start import DTYPES, make_quick

PARTS = ("products", "attention", "between", "head", "sampling", "other")
_RANGES = ("head", "sampling")  # of the runner: all that is in them belongs to them
_PRODUCTS = ("onednn::qlinear_pointwise", "mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "products.")
_ATTENTION = ("aten::bmm", "aten::index_select", "aten::_scaled_dot_product", "attention.", "dense.", "wide_attention.")
_BETWEEN = ("rows.", "wide_rows.")
Input = TypeVar("Input")


@dataclass(frozen=True)
class Profile:
    """What `tephra bench profile` was told."""

    model: Path
    int8: bool
    dtype: str
    prompt: int  # tokens that are prefilled, and behind which answers are decoded
    batches: tuple[int, ...]  # answers decoded at once
    repeats: int


@dataclass(frozen=True)
class Timed:
    """One kind of step: milliseconds, and milliseconds of each of PARTS."""

    name: str
    milliseconds: float
    parts: Mapping[str, float]


def profile_steps(asked: Profile) -> list[Timed]:
    """Raises ModelError, OSError, ValueError."""
    if asked.dtype not in DTYPES:
        raise ValueError(f"dtype {asked.dtype!r}: expected one of {', '.join(DTYPES)}")
    model = load_checkpoint(asked.model, device="cpu", dtype=DTYPES[asked.dtype]).model
    make_quick(model, int8=asked.int8)
    with torch.inference_mode():
        return list(_steps(model, asked))


def table(asked: Profile, found: list[Timed]) -> Rows:
    precision = "int8" if asked.int8 else asked.dtype
    rows = tuple((one.name, f"{one.milliseconds:.1f}", *(f"{one.parts[part]:.1f}" for part in PARTS)) for one in found)
    return Rows(f"Milliseconds, {precision}, {torch.get_num_threads()} threads", ("step", "all", *PARTS), rows)


def _steps(model: LlavaModel, asked: Profile) -> Iterator[Timed]:
    side = model.config.vision.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    yield _timed("encode one tile", asked.repeats, pixels.clone, model.encode_tiles)
    bench = _Bench(model, asked)
    yield _timed(f"prefill {asked.prompt}", asked.repeats, bench.prefill, bench.run)
    for batch in asked.batches:
        bench.begin(batch)
        yield _timed(f"decode {batch} behind {asked.prompt}", asked.repeats, bench.decode, bench.run)


class _Bench:
    """Prompts of one length on the engine's runner."""

    def __init__(self, model: LlavaModel, asked: Profile) -> None:
        most, self._prompt = max(asked.batches), asked.prompt
        self._answer = 2 * asked.repeats + 4
        config = EngineConfig(max_running=most, max_step_tokens=max(asked.prompt, most), prefix_cache=False)
        self._config = config
        room = (asked.prompt + self._answer) // config.block_size + 1
        self._allocator = BlockAllocator(most * room, config.block_size)
        text = model.config.text
        cache = KvCache(text, self._allocator.total, config.block_size, dtype=model.dtype, device=model.device)
        self._runner = Runner(model, cache)
        self._image = model.config.image_token_id
        self._vocabulary = text.vocab_size
        self._scheduler = self._empty()

    def _empty(self) -> Scheduler:
        return Scheduler(self._config, self._allocator, FeatureCache(0))

    def begin(self, batch: int) -> None:
        """So many answers, of which each has its first token."""
        self._clear()
        for number in range(batch):
            self._add(number)
        while any(not sequence.answer_length for sequence in self._all()):
            self.run(self._scheduler.schedule())

    def prefill(self) -> Step:
        self._clear()
        self._add(0)
        return self._scheduler.schedule()

    def decode(self) -> Step:
        return self._scheduler.schedule()

    def run(self, step: Step) -> None:
        result = self._runner.run(step)
        for chunk in result.computed:
            self._scheduler.complete(chunk)
        for sequence, draw in result.drawn:
            sequence.append(draw.token_id)

    def _all(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]

    def _clear(self) -> None:
        for sequence in self._all():
            self._scheduler.finish(sequence)

    def _add(self, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        drawn = torch.randint(self._vocabulary, (2 * self._prompt + 64,), generator=draw).tolist()
        tokens = [token for token in drawn if token != self._image][: self._prompt]
        params = SamplingParams(max_tokens=self._answer, seed=0, temperature=0.0)
        self._scheduler.add(
            Sequence.of(
                EngineRequest(str(number), tuple(tokens), (), params),
                number=number,
                context_length=self._allocator.tokens,
                image_token_id=self._image,
                allocator=self._allocator,
                weights="",
                now=0.0,
            )
        )


def _timed(name: str, repeats: int, prepare: Callable[[], Input], run: Callable[[Input], object]) -> Timed:
    """Each time over an input of its own, which is made aside; the first time does not count."""
    run(prepare())
    seconds = []
    for _ in range(repeats):
        given = prepare()
        begun = time.perf_counter()
        run(given)
        seconds.append(time.perf_counter() - begun)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        for _ in range(repeats):
            given = prepare()
            with record_function("measured"):
                run(given)
    return Timed(name, 1000 * statistics.median(seconds), _laid(seen, 1000 * statistics.median(seconds)))


def _laid(seen: profile, milliseconds: float) -> Mapping[str, float]:
    """The profiled shares of the parts, times the plain time."""
    taken: defaultdict[str, float] = defaultdict(float)
    for event in seen.events() or ():
        within = []
        around = event
        while around is not None:
            within.append(around.name)
            around = around.cpu_parent
        if "measured" in within:
            taken[_part(within)] += event.self_cpu_time_total
    total = sum(taken.values())
    return {part: milliseconds * taken[part] / total for part in PARTS}


def _part(within: list[str]) -> str:
    """`within`: the event's name and those of all around it."""
    for part in _RANGES:
        if part in within:
            return part
    for part, names in (("products", _PRODUCTS), ("attention", _ATTENTION), ("between", _BETWEEN)):
        if within[0].startswith(names):
            return part
    return "other"
