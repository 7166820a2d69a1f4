"""The demo's evaluation, against stand-in servers: one knows the truth, one always says the same, one fails."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image
from rich.console import Console

from training.evaluation import EvaluationError, evaluate_demo
from training.evaluation.tasks import demo_tasks, items
from training.scenes import MIXES, Composer, drawn_catalogue

SAMPLES = 8
FAMILIES = {task.name for task in demo_tasks(112)}

Answer = Callable[[str, Image.Image | None], str | None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """An OpenAI-compatible server whose answer to (question, picture) is `answer`; None is an error 500."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["temperature"] == 0 and body["max_tokens"] <= 128
        content = body["messages"][0]["content"]
        picture, question = None, content
        if isinstance(content, list):
            header, data = content[0]["image_url"]["url"].split(",", 1)
            assert header == "data:image/png;base64"
            picture, question = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), content[1]["text"]
        text = answer(question, picture)
        if text is None:
            return web.json_response({"error": {"message": "broken", "type": "server_error"}}, status=400)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "stand-in", "choices": [choice]}
        )

    app = web.Application(client_max_size=8 * 2**20)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    address: list[str] = []
    ready = threading.Event()

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def known_truth(cache: Path) -> dict[tuple[str, bytes], str]:
    """The training answer to every question of the evaluation, by question and picture."""
    composer = Composer(drawn_catalogue(), "test", 0, MIXES["instruct"], cache_dir=cache)
    return {
        (item.turn.question, item.picture.tobytes()): item.turn.answer
        for task in demo_tasks(112)
        for item in items(task, composer, SAMPLES)
    }


def is_black(picture: Image.Image) -> bool:
    return picture.getextrema() == ((0, 0), (0, 0), (0, 0))


def evaluate(url: str, cache: Path, **options: object):  # type: ignore[no-untyped-def]
    arguments = {"samples_per_family": SAMPLES, "drawn_only": True, "show_progress": False, "cache_dir": cache}
    return evaluate_demo(url, **(arguments | options))  # type: ignore[arg-type]


def test_a_server_that_knows_the_truth_scores_one_everywhere_and_is_blind_without_pictures(tmp_path: Path) -> None:
    truth = known_truth(tmp_path)
    squashed: set[tuple[int, int]] = set()

    def answer(question: str, picture: Image.Image | None) -> str:
        if picture is None:
            return "A text answer."
        if is_black(picture):
            return "I cannot see anything."
        squashed.add(picture.size)
        return truth[question, picture.tobytes()]

    with server(answer) as url:
        result = evaluate(url, tmp_path)
    assert {family.name for family in result.families} == FAMILIES
    for family in result.families:
        assert family.score.rate == 1.0, (family.name, family.mistakes)
        assert family.blind.rate == 0.0
        assert (family.score.answered, family.blind.answered) == (SAMPLES, SAMPLES)
        assert family.mistakes == ()
    assert (112, 112) in squashed
    assert result.failed_requests == 0
    assert len(result.chat) == 5 and {sample.answer for sample in result.chat} == {"A text answer."}


def test_a_constant_answer_scores_the_majority_baseline_and_no_more(tmp_path: Path) -> None:
    with server(lambda question, picture: "Yes.") as url:
        result = evaluate(url, tmp_path)
    yes_no = result.family("yes_no")
    assert yes_no.score.rate == yes_no.blind.rate == yes_no.majority == 0.5
    assert result.family("naming").score.rate == 0.0
    assert yes_no.mistakes and all(mistake.truth == "no" for mistake in yes_no.mistakes)
    with server(lambda question, picture: "3") as url:
        counting = evaluate(url, tmp_path).family("counting")
    assert counting.score.rate == counting.majority == 0.25


def test_failed_requests_are_counted_apart_from_wrong_answers(tmp_path: Path) -> None:
    with server(lambda question, picture: None if picture is not None and is_black(picture) else "Yes.") as url:
        result = evaluate(url, tmp_path, samples_per_family=4)
    for family in result.families:
        assert (family.score.answered, family.score.failed) == (4, 0)
        assert (family.blind.answered, family.blind.failed) == (0, 4)
    assert result.failed_requests == 4 * len(FAMILIES)


def test_the_result_prints_as_a_table_and_as_json(tmp_path: Path) -> None:
    with server(lambda question, picture: "Yes.") as url:
        result = evaluate(url, tmp_path, samples_per_family=4)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    for family in result.families:
        assert family.title in text
    data = json.loads(result.to_json())
    row = next(row for row in data["families"] if row["name"] == "yes_no")
    assert row["score"]["rate"] == 0.5 and row["score"]["answered"] == 4
    assert 0 < row["score"]["interval"][0] < 0.5 < row["score"]["interval"][1] < 1


def test_an_absent_server_or_model_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot list the models"):
        evaluate("http://127.0.0.1:9/v1", tmp_path)
    with server(lambda question, picture: "Yes.") as url, pytest.raises(EvaluationError, match="does not serve other"):
        evaluate(url, tmp_path, model="other")


def test_small_print_is_the_same_with_anyres_on_and_off_but_for_its_size(tmp_path: Path) -> None:
    composer = Composer(drawn_catalogue(), "test", 0, MIXES["instruct"], cache_dir=tmp_path)
    tasks = {task.name: task for task in demo_tasks(112)}
    on, off = (items(tasks[name], composer, 6) for name in ("small_print", "small_print_squashed"))
    for full, squashed in zip(on, off, strict=True):
        assert full.turn == squashed.turn
        assert squashed.picture.size == (112, 112)
        assert full.picture.width * full.picture.height > 112 * 112
