"""A tiny random checkpoint, requests for it, and the plain way to the same answers: all computed anew each token."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.images import ImagePreprocessor, PreparedImage
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint
from worker.engine.config import EngineConfig
from worker.engine.memory import block_bytes
from worker.engine.native import NativeEngine
from worker.engine.observer import EngineObserver, RequestReport, StepReport
from worker.engine.protocol import EngineRequest, SamplingParams
from worker.engine.sampler import Sampler, SampleRow


@dataclass(frozen=True)
class Tiny:
    """A checkpoint in memory."""

    model: LlavaModel
    preprocessor: ImagePreprocessor

    def picture(self, width: int, height: int, seed: int = 0) -> PreparedImage:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return self.preprocessor.prepare_rgb(Image.fromarray(pixels), f"{seed}-{width}x{height}")

    def request(
        self, text: Sequence[int], pictures: Sequence[PreparedImage] = (), *, id: str = "r", **sampling: object
    ) -> EngineRequest:
        """Each picture is followed by the text."""
        tokens: list[int] = [3]
        for picture in pictures:
            tokens += [self.model.config.image_token_id] * picture.layout.tokens + list(text)
        settings = SamplingParams(**{"max_tokens": 8, "seed": 0, "temperature": 0.0} | sampling)  # type: ignore[arg-type]
        return EngineRequest(id, (*tokens, *text), tuple(pictures), settings)

    @torch.inference_mode()
    def plain_answer(self, request: EngineRequest) -> list[int]:
        """No cache, no batch, no chunks: the whole sequence through the model for each token."""
        model, sampling = self.model, request.sampling
        sampler = Sampler(banned=[model.config.image_token_id])
        tokens = list(request.token_ids)
        prompt = np.unique(np.asarray(tokens))
        features = model.encode_images(request.images)
        answer: list[int] = []
        while len(answer) < sampling.max_tokens and len(tokens) < model.config.text.context_length:
            attention = SegmentAttention([len(tokens)], sliding_window=model.config.text.sliding_window)
            embeddings = model.embed(torch.tensor(tokens), features)
            hidden = model.language_model(embeddings, torch.arange(len(tokens)), attention)
            counts = {token: answer.count(token) for token in answer}
            row = SampleRow(sampling, prompt, counts, len(answer))
            [draw] = sampler.sample(model.language_model.logits(hidden[-1:]), [row])
            assert draw is not None
            answer.append(draw.token_id)
            tokens.append(draw.token_id)
            if draw.token_id in sampling.stop_token_ids:
                break
        return answer

    @asynccontextmanager
    async def engine(self, observer: EngineObserver | None = None, **settings: int) -> AsyncIterator[NativeEngine]:
        """A running engine, on one thread of the processor."""
        config = EngineConfig(**{"kv_cache_bytes": 2**22, "threads": 1} | settings)
        engine = NativeEngine(self.model, config, observer)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    @property
    def block_bytes(self) -> int:
        """Of a KV block of four tokens."""
        return block_bytes(self.model.config.text, 4, torch.float32)

    @staticmethod
    async def answer(engine: NativeEngine, request: EngineRequest) -> list[int | None]:
        return [output.token_id async for output in engine.generate(request)]


class Recorder:
    """An observer that keeps every report."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.requests: list[RequestReport] = []

    def step_finished(self, report: StepReport) -> None:
        self.steps.append(report)

    def request_finished(self, report: RequestReport) -> None:
        self.requests.append(report)

    @property
    def preemptions(self) -> int:
        return sum(step.preemptions for step in self.steps)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), dtype=torch.float32)
    return Tiny(checkpoint.model, checkpoint.preprocessor)


@pytest.fixture(scope="session")
def tiny_with_window(tiny: Tiny) -> Tiny:
    """The same weights under a sliding window of seven tokens."""
    config = replace(tiny.model.config, text=replace(tiny.model.config.text, sliding_window=7))
    model = LlavaModel(config)
    model.load_state_dict(tiny.model.state_dict())
    return Tiny(model.eval(), tiny.preprocessor)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
