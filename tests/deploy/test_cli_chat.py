"""`tephra chat` keeps a conversation with its pictures, streams, and says plainly what went wrong."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from deploy.chat import Chat, ChatError
from deploy.cli import app


class StubServer:
    """Answers like an OpenAI-compatible server, with what the test puts into `events`; remembers what it was asked."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.status = 200
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, json.dumps({"data": [{"id": "stub-llava"}]}).encode())

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                stub.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                stub.keys.append(self.headers["Authorization"])
                self.reply(stub.status, "".join(stub.events).encode())

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A test's output is for the test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def will_say(self, *pieces: str) -> None:
        deltas = [{"role": "assistant"}, *({"content": piece} for piece in pieces), {}]
        self.events = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in deltas]
        self.events.append("data: [DONE]\n\n")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.webp"
    Image.new("RGB", (8, 6), (200, 30, 30)).save(path)
    return path


def run(*arguments: str, text: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["chat", *arguments], input=text)
    return result.exit_code, result.output


def test_a_question_with_a_picture_is_answered_on_the_terminal(server: StubServer, picture: Path) -> None:
    server.will_say("A red ", "field: [b]déjà[/b] ", "vu 🟥.")
    options = ("--url", server.url, "--image", str(picture), "--api-key", "k-1", "--max-tokens", "9")
    code, output = run(*options, "What is it?")
    assert (code, output) == (0, "A red field: [b]déjà[/b] vu 🟥.\n")
    asked = server.asked[0]
    assert (asked["model"], asked["stream"], asked["max_tokens"]) == ("stub-llava", True, 9)
    image, question = asked["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 6)
    assert question == {"type": "text", "text": "What is it?"}
    assert server.keys == ["Bearer k-1"]


def test_a_conversation_keeps_its_picture_and_its_turns(server: StubServer, picture: Path) -> None:
    server.will_say("Red.")
    code, _ = run("--url", f"{server.url}/v1", "--image", str(picture), text="Which colour?\nSure?\n/quit\n")
    assert code == 0
    first, second = server.asked
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1:] == [{"role": "assistant", "content": "Red."}, {"role": "user", "content": "Sure?"}]


def test_new_starts_over_and_image_adds_a_picture(server: StubServer, picture: Path) -> None:
    server.will_say("Yes.")
    code, _ = run("--url", server.url, text=f"One\n/new\n/image {picture}\nTwo\n")  # the input's end ends it
    assert code == 0
    assert len(server.asked[1]["messages"]) == 1
    assert [part["type"] for part in server.asked[1]["messages"][0]["content"]] == ["image_url", "text"]


def test_a_question_that_failed_leaves_the_conversation_and_its_picture_as_they_were(
    server: StubServer, picture: Path
) -> None:
    server.status, server.events = 429, [json.dumps({"error": {"message": "The queue is full."}})]
    chat = Chat(server.url)
    chat.attach(picture)
    with pytest.raises(ChatError, match="The queue is full"):
        list(chat.ask("What is it?"))
    server.status = 200
    server.will_say("Red.")
    assert list(chat.ask("What is it?")) == ["Red."]
    chat.close()
    assert server.asked[0] == server.asked[1]


def test_the_servers_words_reach_the_person(server: StubServer) -> None:
    server.status = 400
    server.events = [json.dumps({"error": {"message": "The prompt has 9000 tokens; at most 8192 fit."}})]
    assert run("--url", server.url, "Hello") == (1, "tephra: The prompt has 9000 tokens; at most 8192 fit.\n")


def test_an_answer_that_breaks_off_is_no_success(server: StubServer) -> None:
    server.will_say("Half an")
    server.events.pop()  # no [DONE]
    code, output = run("--url", server.url, "Hello")
    assert code == 1
    assert "Half an" in output
    assert "broke off" in output


def test_an_error_in_the_middle_of_a_stream_is_told(server: StubServer) -> None:
    server.will_say("Half an")
    server.events[-1] = 'data: {"error": {"message": "The worker died."}}\n\n'
    code, output = run("--url", server.url, "Hello")
    assert code == 1
    assert "The worker died." in output


def test_an_answer_does_not_drive_the_terminal(server: StubServer) -> None:
    server.will_say("a\x1b[2J\x07b\nd\x9b31m\r")
    assert run("--url", server.url, "Hello") == (0, "a[2Jb\nd31m\n")


def test_no_server_there_says_how_to_start_one() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, output = run("--url", url, "Hello")
    assert code == 1
    assert output.count("\n") == 1
    assert f"No server answers at {url}/v1: start one with 'tephra up'" in output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("missing.png", None, "No such file"), ("notes.txt", b"no picture", "not accepted"), (".", None, "directory")],
)
def test_a_file_that_is_no_picture_is_refused_before_anything_is_sent(
    server: StubServer, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, output = run("--url", server.url, "--image", str(tmp_path / name), "What is it?")
    assert code == 1
    assert words in output
    assert output.count("\n") == 1
    assert server.asked == []


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http:///v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    code, output = run("--url", url, "Hello")
    assert code == 1
    assert "no server's address" in output
