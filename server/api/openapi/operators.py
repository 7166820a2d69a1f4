"""What operators, probes and browsers are served, and how workers join."""

from __future__ import annotations

from server.api.health import Live, Ready
from server.api.openapi import examples, refusals
from server.api.openapi.operation import TEXT, Answer, Operation, Parameter
from server.api.openapi.shapes import Statistics, WorkerDescription, Workers
from server.protocol.registration import Heartbeat, HeartbeatAnswer, Registration, RegistrationAnswer
from server.stats import WINDOW, WINDOWS

_WORKER = Parameter("worker_id", "As GET /admin/workers lists it.", TEXT, "worker-1")
_WINDOW = Parameter(
    "window",
    "Seconds that `counts`, `errors`, `slowest` and the percentiles are of.",
    {"type": "integer", "enum": list(WINDOWS), "default": WINDOW},
    WINDOWS[-1],
    place="query",
)
_LOCAL = "Without an admin key, callers on the controller's own machine may read."


def _page(path: str, summary: str) -> Operation:
    answer = Answer("The page, under a policy that runs nothing but this server's files.", media_type="text/html")
    return Operation("GET", path, "Pages", summary, (answer,), refusals.NO_FILE)


def _reading(
    path: str, summary: str, answer: Answer, refused: tuple[refusals.Refusal, ...] = (), *parameters: Parameter
) -> Operation:
    return Operation(
        "GET",
        f"/admin/{path}",
        "Admin",
        summary,
        (answer,),
        (*refusals.ADMIN_KEY, *refused),
        key="admin_or_local",
        words=_LOCAL,
        parameters=parameters,
    )


def _action(path: str, summary: str, words: str) -> Operation:
    return Operation(
        "POST",
        f"/admin/workers/{{worker_id}}/{path}",
        "Admin",
        summary,
        (Answer("The worker as it is now.", WorkerDescription),),
        (*refusals.ADMIN_KEY, *refusals.NO_WORKER, *refusals.NO_FILE, *refusals.REDIS_LOST),
        key="admin",
        words=words,
        parameters=(_WORKER,),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/health/live", "Health", "The process runs", (Answer("It does.", Live),)),
    Operation(
        "GET",
        "/health/ready",
        "Health",
        "At least one worker can answer",
        (Answer("One can; `degraded` while Redis is lost and the last known table serves.", Ready),),
        refusals.NOT_READY,
    ),
    Operation(
        "GET",
        "/metrics",
        "Health",
        "Prometheus metrics",
        (Answer("Prometheus' text format.", media_type="text/plain"),),
    ),
    Operation(
        "GET",
        "/openapi.json",
        "Pages",
        "This document",
        (Answer("OpenAPI 3.1.", dict),),
    ),
    _page("/", "The playground"),
    _page("/dashboard", "The dashboard"),
    Operation(
        "GET",
        "/assets/{path}",
        "Pages",
        "A file that the pages use",
        (Answer("The file, of its own media type.", media_type="*/*"),),
        refusals.NO_FILE,
        parameters=(Parameter("path", "The file's name.", TEXT, "style.css"),),
    ),
    _reading(
        "workers",
        "Registered workers, their load and state",
        Answer("Those that are there, and those that were lost of late.", Workers),
    ),
    _reading(
        "stats",
        "Rates, percentiles and recent requests of this controller",
        Answer("Of all processes of this controller together. No request's content is in it.", Statistics),
        refusals.NO_WINDOW,
        _WINDOW,
    ),
    _action(
        "drain",
        "Send a worker no more requests",
        "Every controller honours it, from now until it is taken back or the worker leaves. What is in flight is "
        'finished; `state` is "drained" once the worker is safe to stop.',
    ),
    _action("undrain", "Send a worker requests again", "Takes a drain back."),
    Operation(
        "POST",
        "/internal/workers",
        "Workers",
        "A worker joins",
        (Answer("How often it is to report, and how long it is remembered without.", RegistrationAnswer),),
        (*refusals.WORKER_SECRET, *refusals.REPORT),
        key="worker",
        words="Again after a 404 on a heartbeat.",
        body=Registration,
        examples=examples.REGISTRATION,
    ),
    Operation(
        "POST",
        "/internal/workers/{worker_id}/heartbeat",
        "Workers",
        "A worker reports",
        (
            Answer("There is something that it should do.", HeartbeatAnswer),
            Answer("All is well.", status=204),
        ),
        (*refusals.WORKER_SECRET, *refusals.REPORT, *refusals.NO_WORKER, *refusals.NO_FILE),
        key="worker",
        body=Heartbeat,
        examples=examples.HEARTBEAT,
        parameters=(_WORKER,),
    ),
    Operation(
        "DELETE",
        "/internal/workers/{worker_id}",
        "Workers",
        "A worker leaves in good order",
        (Answer("It is forgotten, known or not.", status=204),),
        (*refusals.WORKER_SECRET, *refusals.NO_FILE),
        key="worker",
        parameters=(_WORKER,),
    ),
)
