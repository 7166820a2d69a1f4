"""The forms that requests ask for, compiled. Errors are ApiErrors, because they are written for the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from server.protocol.errors import bad_request, overloaded
from server.protocol.openai import Structure
from worker.calling import Calling
from worker.grammar.bounds import Bounds
from worker.grammar.compiler import CompiledGrammar, GrammarCompiler
from worker.grammar.errors import GrammarBusy, GrammarError
from worker.grammar.source import CallFormat, GrammarSource, read_structure, read_tools

_LAYOUTS = {None: CallFormat(), "hermes": CallFormat("<tool_call>\n", "\n</tool_call>", "\n")}


class GrammarObserver(Protocol):
    """Who counts requests for forms."""

    def grammar_asked(self, kind: str) -> None: ...

    def grammar_rejected(self, kind: str) -> None: ...


class Grammars:
    """Of one checkpoint. Without a compiler (the checkpoint has no end token) every form is refused with words."""

    def __init__(self, compiler: GrammarCompiler | None, bounds: Bounds, observer: GrammarObserver) -> None:
        self._compiler = compiler
        self._bounds = bounds
        self._observer = observer

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()

    async def of_structure(self, asked: Structure) -> CompiledGrammar:
        """Raises ApiError: 400 with the reason, 429 when too many wait to be compiled."""
        return await self._compile(
            asked.kind, asked.param, lambda: read_structure(asked.kind, asked.value, self._bounds)
        )

    async def of_calls(self, calling: Calling) -> CompiledGrammar | None:
        """Likewise; None where the model is free to call or not. Bounds hold for functions it is free to call too."""
        schemas = {function.name: function.parameters for function in calling.functions}
        layout = _LAYOUTS[calling.layout]

        def source() -> GrammarSource:
            self._bounds.check_size("".join(function.description or "" for function in calling.functions))
            return read_tools(schemas, self._bounds, layout, several=calling.several)

        if calling.forced:
            return await self._compile("tools", "tools", source)
        try:
            self._observer.grammar_asked("tools_auto")
            source()
        except GrammarError as error:
            raise self._refusal("tools_auto", "tools", error) from None
        return None

    async def _compile(self, kind: str, param: str, source: Callable[[], GrammarSource]) -> CompiledGrammar:
        self._observer.grammar_asked(kind)
        if self._compiler is None:
            raise bad_request(
                "This model has no end token, so an answer of a given form could not end.",
                param=param,
                code="unsupported_parameter",
            )
        try:
            compiled: Awaitable[CompiledGrammar] = self._compiler.compile(source())
            return await compiled
        except GrammarError as error:
            raise self._refusal(kind, param, error) from None
        except GrammarBusy:
            self._observer.grammar_rejected(kind)
            raise overloaded("Too many schemas and expressions wait to be compiled.", retry_after=1) from None

    def _refusal(self, kind: str, param: str, error: GrammarError) -> Exception:
        self._observer.grammar_rejected(kind)
        return bad_request(f"{param}: {error}.", param=param, code="invalid_grammar")
