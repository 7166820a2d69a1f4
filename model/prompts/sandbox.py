"""Renders chat templates that nobody vouches for: in transformers' Jinja sandbox, with time and size bounded.

The sandbox keeps a template away from Python's internals; it does not keep it from looping for ever or from filling
memory. So every turn of a loop and every call counts against a budget of time, everything that a template puts together
against a budget of text, and what repeats or pads a text is measured beforehand. What a single call of a filter or
method makes of two long texts (`replace`, `join`) is measured only afterwards. It knows nothing of tokens.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

from model.errors import PromptError

MOST_SOURCE = 1_000_000  # characters of a template
MOST_TEXT = 128 * 2**20  # characters that one render may put together, intermediate results included
MOST_STEPS = 200_000  # turns of loops and calls
MOST_SECONDS = 1.0  # of the rendering thread's own time
_MOST_NUMBER = 100_000  # in a call or a filter; the sandbox's own limit of a range
_MOST_BITS = 4096  # of a product or power
_ITEM = 32  # what an item of a list counts for, in characters
_STEPS_BETWEEN_LOOKS = 64  # at the clock
_WIDE_FIELD = re.compile(r"\d{5}|\*")


class TemplateCostError(PromptError):
    """A template takes more time or makes more text than any prompt needs."""


class _Budget:
    """What one render has left."""

    def __init__(self) -> None:
        self._steps = 0
        self._deadline = time.thread_time() + MOST_SECONDS
        self._text = MOST_TEXT

    def step(self) -> None:
        self._steps += 1
        late = self._steps % _STEPS_BETWEEN_LOOKS == 0 and time.thread_time() > self._deadline
        if late or self._steps > MOST_STEPS:
            raise TemplateCostError(
                f"The chat template does not finish within {MOST_STEPS} steps or {MOST_SECONDS:g} s: is it a loop?"
            )

    def spend(self, made: Any) -> None:
        """Counts a text or list that is to be made or was made."""
        self.spend_characters(_size(made))

    def spend_characters(self, characters: int) -> None:
        self._text -= characters
        if self._text < 0:
            self.refuse()

    def refuse(self) -> NoReturn:
        raise TemplateCostError(
            f"The chat template puts together more than {MOST_TEXT} characters, or uses numbers of such a size."
        )


_budget: ContextVar[_Budget] = ContextVar("budget of the render under way")


class BoundedTemplate:
    """One compiled template. Safe to use from several threads."""

    def __init__(self, source: str) -> None:
        """Raises PromptError when it is no Jinja or is too long."""
        if len(source) > MOST_SOURCE:
            raise PromptError(f"The chat template has {len(source)} characters; at most {MOST_SOURCE} are read.")
        environment = _environment()
        try:
            tree = _Meter().visit(environment.parse(source))
            code = environment.compile(tree)
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError) as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise PromptError(f"The chat template cannot be read{line}: {error}") from error
        self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises PromptError with the template's own reason, TemplateCostError beyond the bounds."""
        token = _budget.set(_Budget())
        try:
            return self._template.render(variables)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(f"The chat template refuses this conversation: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise TemplateCostError("The chat template calls itself too often or fills the memory.") from error
        finally:
            _budget.reset(token)


def _environment() -> SandboxedEnvironment:
    """transformers' sandbox, with what can run long or grow large counted."""
    environment: Any = _compile_jinja_template("").environment.overlay()
    call, operators = environment.call, environment.binop_table

    def counted_call(context: Any, what: Any, *args: Any, **kwargs: Any) -> Any:
        _check_call(what, args, kwargs)
        result = call(context, what, *args, **kwargs)
        _budget.get().spend(result)
        return result

    def counted_operation(_context: Any, sign: str, left: Any, right: Any) -> Any:
        _check_operands(sign, left, right)
        return operators[sign](left, right)

    environment.call = counted_call
    environment.call_binop = counted_operation
    environment.intercepted_binops = frozenset({"*", "**", "%", "+"})
    environment.concat = _join
    environment.count_step = _count_step
    environment.join_values = lambda *values: _join(map(str, values))
    environment.filters = {name: _counted_filter(function) for name, function in environment.filters.items()}
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    return environment  # type: ignore[no-any-return]


class _Meter(NodeTransformer):
    """Counts a step in every body that can run again, and sends `~` through the counted join."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._metered(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._metered(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._metered(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("join_values", node.nodes, node)

    def _metered(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        statement = nodes.ExprStmt(self._call("count_step", [], node)).set_lineno(node.lineno)
        node.body = [statement, *node.body]
        return node  # type: ignore[no-any-return]

    def _call(self, name: str, arguments: list[nodes.Expr], like: nodes.Node) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        call.set_lineno(like.lineno)
        if like.environment is not None:
            call.set_environment(like.environment)
        return call


def _count_step() -> str:
    _budget.get().step()
    return ""


def _size(made: Any) -> int:
    if isinstance(made, str):
        return len(made)
    return len(made) * _ITEM if isinstance(made, (list, tuple, dict)) else 0


def _join(texts: Iterable[str]) -> str:
    budget, pieces = _budget.get(), []
    for text in texts:
        budget.spend(text)
        pieces.append(text)
    return "".join(pieces)


def _counted_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps what the filter says about the context that it wants to be given
    def counted(*args: Any, **kwargs: Any) -> Any:
        _check_call(function, args, kwargs)
        if function.__name__ == "do_format" and _WIDE_FIELD.search(str(args[0])):
            _budget.get().refuse()
        result = function(*args, **kwargs)
        _budget.get().spend(result)
        return result

    return counted


def _check_call(what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts a step; numbers and field widths must be of a size that some prompt could need."""
    budget = _budget.get()
    budget.step()
    owner = getattr(getattr(what, "__wrapped__", what), "__self__", None)  # the sandbox wraps str.format
    formats = isinstance(owner, str) and what.__name__.startswith("format") and _WIDE_FIELD.search(owner)
    if formats or any(isinstance(value, int) and abs(value) > _MOST_NUMBER for value in (*args, *kwargs.values())):
        budget.refuse()


def _check_operands(sign: str, left: Any, right: Any) -> None:
    """What comes of them must be of a bearable size."""
    budget = _budget.get()
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if sign == "**" else left.bit_length() + right.bit_length()
        if sign in ("*", "**") and bits > _MOST_BITS:
            budget.refuse()
    elif sign == "*" and isinstance(right, int):
        budget.spend_characters(_size(left) * max(right, 0))
    elif sign == "*" and isinstance(left, int):
        budget.spend_characters(_size(right) * max(left, 0))
    elif sign == "%" and isinstance(left, str) and _WIDE_FIELD.search(left):
        budget.refuse()
    elif sign == "+":
        budget.spend_characters(_size(left) + _size(right))
