"""How a broken stream is carried on by another worker: what the first tells of it as it goes, what the second is told.

The controller asks for it with `X-Tephra-Resumable: 1`. A worker that can do it says so by the same header on its
answer, and from then on puts comment lines (which every reader of server-sent events passes over) in front of the data
of a frame:

    :tephra {"id": ..., "created": ..., "version": ..., "seed": ...}     once, in front of the first frame: Beginning
    :tephra [0, [318, 12], [], false]                                    Told: choice 0 has come two tokens further

A line that is only `:` says that the worker lives; no ALIVE_SECONDS pass without a line. The controller keeps all this
from clients.

To carry on, the request is posted to another worker with `X-Tephra-Continue: N`: the first N bytes of its body are a
Continuation, the rest is the request as the first worker had it. The answer is what would have followed. So nothing of
this stands in the JSON of a request, and nothing that a client sends can be taken for it; a worker believes the headers
only from who shows the worker secret.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

RESUMABLE = "X-Tephra-Resumable"
CONTINUE = "X-Tephra-Continue"
MARK = b":tephra "
ALIVE = b":\n\n"
ALIVE_SECONDS = 1.0
MAX_CONTINUATION = 2 * 2**20  # bytes
MAX_TOKENS = 131_072  # of all choices of a stream that can be carried on

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Beginning(msgspec.Struct, frozen=True):
    """What all of a stream's frames have in common, and the seed of its draws."""

    id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z")]
    created: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # unix seconds
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    seed: int  # as in the request, or what the worker took for a request without one


class HeldScore(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of a token that the client was not told yet."""

    logprob: float
    top: list[tuple[TokenId, float]]


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a choice has come to. In a stream `tokens` are those that are new, in a Continuation all."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1024)]
    tokens: list[TokenId] = []
    held: list[HeldScore] = []  # of the last tokens
    ended: bool = False  # its finish_reason was told


class Continuation(msgspec.Struct, frozen=True):
    beginning: Beginning
    choices: list[Told]  # those that the client has heard of
