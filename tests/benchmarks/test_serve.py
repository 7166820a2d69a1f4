"""`tephra bench serve` against servers that behave and misbehave, over real HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import app

pytestmark = pytest.mark.timeout(300)
StartStandIn = Callable[..., Any]
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Runs the command on a URL; its exit code, what it printed, and the JSON that it wrote."""

    def run(url: str, *arguments: str) -> dict[str, Any]:
        file = tmp_path / "run.json"
        file.unlink(missing_ok=True)
        asked = ["bench", "serve", "--url", url, "--size", "24x24", "--json", str(file), *arguments]
        result = CliRunner().invoke(app, asked)
        text = file.read_text() if file.exists() else ""
        return {"code": result.exit_code, "printed": result.output, **(json.loads(text) if text else {})}

    return run


def test_every_request_is_answered_counted_and_timed(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in(tokens=5, pause=0.002)
    found = bench(server.url, "--requests", "9", "--concurrency", "3", "--warmup", "2", "--slo", "e2e=100s")
    summary = found["summary"]
    assert found["code"] == 0, found["printed"]
    assert (summary["answered"], summary["failed"]) == (9, 0)
    assert (summary["output_tokens"], summary["input_tokens"]) == (45, 63)
    assert summary["itl"]["count"] == 9 * 4
    assert 0 < summary["ttft"]["p50"] < summary["e2e"]["p50"]
    assert summary["good"] == 9
    assert len(server.bodies) == 1 + 2 + 9  # one to find out what the server takes, then the warm-up
    assert server.most_at_once == 3
    assert all(body["ignore_eos"] and body["stream_options"] == {"include_usage": True} for body in server.bodies)
    assert len({json.dumps(body["messages"]) for body in server.bodies}) == len(server.bodies)
    assert len(found["requests"]["rows"]) == 9
    for word in ("time to first token", "inter-token", "time per output token", "end to end", "goodput", "errors"):
        assert word in found["printed"]


def test_each_kind_of_failure_is_counted_by_name_and_the_run_goes_on(stand_in: StartStandIn, bench: Bench) -> None:
    kinds = ("ok", "500", "429", "cut", "not json", "error event", "html", "empty", "hang", "ok")
    server = stand_in("ok", *kinds)  # the first is asked before the run
    found = bench(server.url, "--requests", "10", "--warmup", "0", "--images", "none", "--request-timeout", "2")
    assert found["code"] == 0, found["printed"]
    assert found["summary"]["errors"] == {
        "HTTP 500": 1,
        "stream cut short": 1,
        "unreadable JSON": 1,
        "error in the stream worker_lost": 1,
        "no event stream": 1,
        "empty answer": 1,
        "no whole answer within 2 s": 1,
    }
    assert found["summary"]["refusals"] == {"HTTP 429 rate_limit_exceeded": 1}  # no error: it did as it should
    assert [found["summary"][name] for name in ("answered", "failed", "refused")] == [2, 7, 1]
    assert "2 of 10 in" in found["printed"]
    assert found["first_errors"]["HTTP 500"] == "it broke"
    for kind in [*found["summary"]["errors"], *found["summary"]["refusals"]]:
        assert kind in " ".join(found["printed"].split())


def test_a_run_without_an_answer_fails(stand_in: StartStandIn, bench: Bench) -> None:
    found = bench(stand_in("500").url, "--requests", "3", "--images", "none")
    assert found["code"] == 1
    assert found["summary"]["answered"] == 0


def test_a_server_that_goes_away_is_an_error_of_each_request(stand_in: StartStandIn, bench: Bench) -> None:
    found = bench("http://127.0.0.1:9", "--model", "m", "--requests", "4", "--images", "none", "--warmup", "0")
    assert found["summary"]["errors"] == {"no connection": 4}


def test_conversations_carry_answers_on_and_show_their_picture_once(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in(tokens=2)
    found = bench(server.url, "--requests", "6", "--turns", "3", "--warmup", "0")
    turns = [len(body["messages"]) for body in server.bodies[1:]]
    assert turns == [1, 3, 5, 1, 3, 5]
    assert server.bodies[2]["messages"][1] == {"role": "assistant", "content": "word word "}
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies[1:]]
    assert len(set(urls)) == 2
    assert found["summary"]["ttft_seen"]["count"] == 4
    assert found["summary"]["ttft_new"]["count"] == 2


def test_a_conversation_ends_with_a_failed_turn_and_says_what_was_not_asked(
    stand_in: StartStandIn, bench: Bench
) -> None:
    found = bench(stand_in("ok", "ok", "500").url, "--requests", "2", "--turns", "4", "--warmup", "0")
    assert (found["summary"]["failed"], found["summary"]["not_asked"]) == (1, 2)


def test_repeated_pictures_are_one_and_no_pictures_are_none(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in()
    bench(server.url, "--requests", "4", "--images", "repeated", "--warmup", "0")
    sent = [body["messages"][0]["content"] for body in server.bodies[1:]]
    assert len({parts[0]["image_url"]["url"] for parts in sent}) == 1
    assert len({parts[1]["text"] for parts in sent}) == 4
    server.bodies.clear()
    bench(server.url, "--requests", "2", "--images", "none", "--warmup", "0")
    assert all(isinstance(body["messages"][0]["content"], str) for body in server.bodies)


def test_without_streaming_whole_answers_are_timed(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in()
    found = bench(server.url, "--requests", "3", "--no-stream")
    assert found["code"] == 0
    assert found["summary"]["ttft"] is None
    assert found["summary"]["output_tokens"] == 15
    assert not any("stream_options" in body for body in server.bodies)


def test_arrivals_at_a_rate_do_not_wait_for_answers(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in(tokens=3, pause=0.2)
    found = bench(server.url, "--requests", "12", "--rate", "200", "--images", "none", "--warmup", "0")
    assert found["summary"]["answered"] == 12
    assert server.most_at_once > 3
    began = [row[0] for row in found["requests"]["rows"]]
    assert len(set(began)) == 12


def test_fields_that_a_server_refuses_are_left_out_and_told(stand_in: StartStandIn, bench: Bench) -> None:
    server = stand_in("strict")
    found = bench(server.url, "--requests", "2", "--images", "none")
    assert found["summary"]["answered"] == 2
    assert found["summary"]["output_tokens"] == 10  # by parts of text
    assert "refuses ignore_eos" in found["printed"]
    assert "refuses stream_options" in found["printed"]


def test_a_duration_ends_the_run(stand_in: StartStandIn, bench: Bench) -> None:
    found = bench(stand_in(pause=0.01).url, "--duration", "0.5", "--concurrency", "2", "--images", "none")
    assert found["code"] == 0
    assert max(row[0] for row in found["requests"]["rows"]) < 0.5


def test_the_plot_is_a_picture_with_every_curve(stand_in: StartStandIn, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "run.svg"
    bench(stand_in("ok", "ok", "500").url, "--requests", "6", "--images", "none", "--plot", str(file))
    drawn = file.read_text()
    ElementTree.fromstring(drawn)
    for name in ("time to first token", "inter-token", "time per output token", "end to end"):
        assert name in drawn
    assert drawn.count("<polyline") == 4
    assert "#d62728" in drawn  # the failures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "ftp://x"], "no server's address"),
        (["--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9/v1"),
        (["--url", "http://127.0.0.1:9", "--size", "big"], "expected WIDTHxHEIGHT"),
        (["--url", "http://127.0.0.1:9", "--slo", "ttft=5"], "expected ttft"),
        (["--url", "http://127.0.0.1:9", "--no-stream", "--slo", "ttft=5ms"], "only e2e"),
        (["--url", "http://127.0.0.1:9", "--plot", "x.pdf"], "ends in .svg"),
        (["--url", "http://127.0.0.1:9", "--requests", "3", "--duration", "3"], "and not both"),
        (["--url", "http://127.0.0.1:9", "--json", "/nowhere/x.json"], "/nowhere/x.json"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", *arguments])
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.count("\n") == 1


def test_an_interrupt_shows_what_was_measured_so_far(stand_in: StartStandIn, tmp_path: Path) -> None:
    server = stand_in("ok", "ok", "ok", "hang")
    asked = ["--requests", "50", "--images", "none", "--warmup", "0", "--json", str(tmp_path / "run.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "bench", "serve", "--url", server.url, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(server.bodies) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert "Stopped early: 1 requests under way were dropped." in printed
    summary = json.loads((tmp_path / "run.json").read_text())["summary"]
    assert (summary["answered"], summary["interrupted"]) == (2, 1)


def test_a_running_system_is_measured_through_its_controller(running_system: Callable[..., Any], bench: Bench) -> None:
    with running_system({}, {}) as system:
        asked = ["--api-key", system.key, "--requests", "6", "--concurrency", "3", "--turns", "2", "--max-tokens", "8"]
        found = bench(system.url, *asked, "--size", "60x40,40x90", "--format", "png", "--slo", "e2e=1000s")
        refused = bench(system.url, "--api-key", "wrong", "--model", system.model, "--requests", "2")
    assert found["code"] == 0, found["printed"]
    assert (found["summary"]["answered"], found["summary"]["errors"]) == (6, {})
    assert found["summary"]["output_tokens"] == 6 * 8  # none ended early
    assert found["summary"]["input_tokens"] > 6 * 24
    assert found["summary"]["good"] == 6
    assert refused["code"] == 1
    assert [kind[:8] for kind in refused["summary"]["errors"]] == ["HTTP 401"]
