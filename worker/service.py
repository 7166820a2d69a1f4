"""One model on one device with all that answers need around it: what the API's routes work with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.protocol.continuing import Told
from server.protocol.errors import bad_request, model_not_found
from server.protocol.openai import ChatCompletionRequest, CompletionRequest
from server.protocol.registration import ModelCard
from worker.answers.answer import Answer, AnswerRules
from worker.answers.token_bytes import TokenBytes
from worker.answers.tool_calls import CallReader, ForcedCalls, TaggedCalls
from worker.calling import Calling, read_calling
from worker.engine.protocol import Engine, EngineRequest
from worker.gate import Gate, Slot
from worker.generation import Generation, Running
from worker.grammar.compiler import CompiledGrammar
from worker.grammars import Grammars
from worker.intake import Intake, Prompt, TokenBudget
from worker.metrics import WorkerMetrics
from worker.sampling import Sampler

NOTHING_TOLD: Mapping[int, Told] = {}


@dataclass(frozen=True)
class ServiceLimits:
    request_seconds: float = 1800.0  # from the first engine step asked for to the last
    body_seconds: float = 60.0  # to receive a request's body
    send_seconds: float = 60.0  # for a client to take one part of an answer
    max_body_bytes: int = 64 * 2**20
    default_max_tokens: int = 4096


@dataclass(frozen=True)
class Service:
    """The parts that answer requests for one served model."""

    card: ModelCard
    engine: Engine
    intake: Intake
    tokens: TokenBytes
    sampler: Sampler
    grammars: Grammars
    gate: Gate
    metrics: WorkerMetrics
    stop_strings: tuple[str, ...] = ()  # that end a chat answer, in prompt formats that have no token for it
    space_first: bool = False  # whether the prompt format lets a chat answer begin with a space
    device: str = "cpu"
    limits: ServiceLimits = ServiceLimits()
    api_keys: frozenset[str] = field(default=frozenset(), repr=False)
    worker_secret: str | None = field(default=None, repr=False)  # one of the keys: the controller's

    @property
    def budget(self) -> TokenBudget:
        return TokenBudget(self.card.context_length, self.limits.default_max_tokens)

    def close(self) -> None:
        """Ends the threads and processes of the parts. The engine is stopped by whoever started it."""
        self.intake.close()
        self.grammars.close()

    def calling(self, request: ChatCompletionRequest) -> Calling | None:
        """The functions that the answers may call. Raises ApiError where that cannot be had."""
        return read_calling(request, self.intake.tool_format)

    async def chat(
        self,
        request: ChatCompletionRequest,
        slot: Slot,
        calling: Calling | None = None,
        told: Mapping[int, Told] = NOTHING_TOLD,
    ) -> Generation:
        """Prepares a chat request for the engine. Raises ApiError. `told`: what another worker has answered of it."""
        self._check_model(request.model)
        slot.hold_images(self.intake.count_images(request))
        grammar = await (self._grammar(request) if calling is None else self.grammars.of_calls(calling))
        prompt, max_tokens = await self.intake.chat(request, self.budget, calling)
        return self._generation(request, [(prompt, max_tokens)], grammar, told, continues_text=False)

    async def complete(self, request: CompletionRequest, told: Mapping[int, Told] = NOTHING_TOLD) -> Generation:
        """Prepares a completions request, likewise."""
        self._check_model(request.model)
        grammar = await self._grammar(request)
        prompts = [await self.intake.text(text, request.token_limit, self.budget) for text in request.prompts]
        return self._generation(request, prompts, grammar, told, continues_text=True)

    async def _grammar(self, request: ChatCompletionRequest | CompletionRequest) -> CompiledGrammar | None:
        asked = request.structure()
        return None if asked is None else await self.grammars.of_structure(asked)

    def _check_model(self, name: str) -> None:
        if name != self.card.name:
            raise model_not_found(name[:128])

    def _generation(
        self,
        request: ChatCompletionRequest | CompletionRequest,
        prompts: Sequence[tuple[Prompt, int]],
        grammar: CompiledGrammar | None,
        told: Mapping[int, Told],
        *,
        continues_text: bool,
    ) -> Generation:
        """Answers of a prompt stand side by side: index = prompt * n + answer, as in OpenAI's completions."""
        # A form says itself where an answer ends, and its first space belongs to it.
        constrained = grammar is not None
        ends = () if continues_text or request.ignore_eos or constrained else self.stop_strings
        rules = AnswerRules(
            stops=(*request.stops, *ends),
            min_tokens=request.min_tokens or 0,
            skip_special_tokens=request.skip_special_tokens is not False,
            continues_text=continues_text or constrained,
            drop_first_space=self.space_first and not continues_text and not constrained,
        )
        name = uuid.uuid4().hex
        answers: list[Running] = []
        for place, (prompt, max_tokens) in enumerate(prompts):
            for sampling in self.sampler.params(request, max_tokens, constrained=constrained):
                before = told.get(len(answers))
                begun = tuple(before.tokens) if before is not None and not before.ended else ()
                matcher = grammar.matcher() if grammar is not None else None
                if matcher is not None and begun:
                    matcher.follow(begun)
                engine_request = EngineRequest(
                    f"{name}-{len(answers)}",
                    prompt.token_ids,
                    prompt.images,
                    sampling,
                    cache_salt=request.cache_salt or "",
                    constraint=matcher,
                    answer=begun,
                )
                answers.append(Running(engine_request, Answer(self.tokens, rules), place, matcher, before))
        if unknown := [index for index in told if index >= len(answers)]:
            raise bad_request(f"There is no answer {unknown[0]} to carry on.", code="continuation_refused")
        return Generation(self.engine, answers, self.limits.request_seconds, self.metrics.deadline_exceeded)


def call_reader(calling: Calling) -> CallReader:
    """For one answer."""
    if calling.forced:
        return ForcedCalls()
    return TaggedCalls({function.name for function in calling.functions}, several=calling.several)


def new_answer_id(prefix: str) -> str:
    """An id in OpenAI's form: chatcmpl-... or cmpl-..."""
    return f"{prefix}-{uuid.uuid4().hex}"


def unix_now() -> int:
    return int(time.time())
