"""The controller as a process: how it starts, what it says when it cannot, how it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import psutil
import pytest
from aiohttp import web

from server.__main__ import main, run
from server.protocol.flags import SettingsError, flag
from server.settings import Settings, read_settings

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}


@asynccontextmanager
async def running(*arguments: str, **environment: str):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "--port", "0", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**CLEAN, **environment},
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("Tephra controller ready at http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def said(capsys, code: int) -> str:
    """The one line on stderr."""
    output = capsys.readouterr()
    assert code == 1
    assert output.out == ""
    assert len(output.err.splitlines()) == 1, output.err
    assert output.err.startswith("tephra controller: ")
    return output.err


def test_a_port_in_use_is_told_in_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in said(capsys, run(Settings(port=port)))


@pytest.mark.parametrize("redis_url", ["redis://:hush@127.0.0.1:1/0", "unix:///no/socket?password=hush", "hush://x"])
def test_an_unreachable_redis_is_told_in_one_line_without_its_password(capsys, redis_url):
    line = said(capsys, run(Settings(port=0, redis_url=redis_url, worker_secret="s")))
    assert "Redis" in line
    assert "hush" not in line


def test_who_can_be_reached_by_others_needs_a_worker_secret(capsys):
    assert "TEPHRA_WORKER_SECRET" in said(capsys, run(Settings(host="0.0.0.0", port=0)))
    assert "TEPHRA_WORKER_SECRET" in said(capsys, run(Settings(port=0, redis_url="redis://127.0.0.1:1/0")))


def test_a_setting_that_makes_no_sense_is_told_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["server", "--max-inflight", "many"])
    assert "--max-inflight" in said(capsys, main())


def test_settings_come_from_flags_then_environment_then_defaults():
    environment = {"TEPHRA_PORT": "9000", "TEPHRA_API_KEYS": "a, b,", "TEPHRA_MEDIA_ALLOW_PRIVATE": "1"}
    settings = read_settings(["--port", "9001"], environment)
    assert (settings.port, settings.api_keys, settings.media_allow_private) == (9001, ("a", "b"), True)
    assert settings.host == "127.0.0.1"
    assert not read_settings(["--no-media-allow-private"], environment).media_allow_private
    for bad in (
        ["--port", "70000"],
        ["--port", "-1"],
        ["--routing", "random"],
        ["--lease-seconds", "1"],
        ["--heartbeat-seconds", "nan"],
        ["--poll-seconds", "0"],
        ["--breaker-failure-rate", "1.5"],
        ["--ejected-share", "34"],
    ):
        with pytest.raises(SettingsError, match=bad[0]):
            read_settings(bad, {})
    with pytest.raises(SettingsError, match="--ejected-share: expected at most 1, got 34"):
        read_settings(["--ejected-share", "34"], {})


def test_secrets_are_not_shown_with_the_settings():
    shown = repr(Settings(worker_secret="hush", api_keys=("hush",), admin_key="hush", redis_url="redis://:hush@h"))
    assert "hush" not in shown
    assert flag("worker_secret") == "--worker-secret"


async def test_a_controller_runs_alone_without_torch_and_stops_in_good_order():
    async with running() as (process, url):
        port = int(url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert not any("torch" in mapped.path for mapped in psutil.Process(process.pid).memory_maps())
        (valkey,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        writer.close()
        assert not valkey.is_running()


async def test_the_embedded_valkey_does_not_outlive_a_killed_controller(until):
    async with running() as (process, _):
        (valkey,) = psutil.Process(process.pid).children()
        process.kill()
        await process.wait()
        await until(lambda: not valkey.is_running() or valkey.status() == psutil.STATUS_ZOMBIE)


async def test_answers_under_way_may_end_and_the_rest_are_told(
    start_controller, start_worker, open_stream, chunk, until
):
    client = await start_controller(shutdown_seconds=3.0)
    worker = await start_worker("w1", client)

    async def work(request):
        body = await request.json()
        if not body.get("stream"):
            await asyncio.sleep(0.3)
            return web.json_response({"choices": []})
        response = await open_stream(request)
        while True:
            await response.write(chunk("word "))
            await asyncio.sleep(0.05)

    worker.handler = work
    short = asyncio.create_task(client.chat("hi"))
    endless = asyncio.create_task(client.stream("hi"))
    await until(lambda: len(worker.bodies) == 2)
    client.server.stop()
    assert (await short)[0] == 200
    events = await endless
    assert '"error"' in events[-1]
    assert "stopping" in events[-1]
    await client.server.wait()
    with pytest.raises(OSError):
        await client.get("/health/live")


def test_nothing_here_imports_torch():
    code = "import sys, server.__main__, server.api.openapi; assert 'torch' not in sys.modules, 'torch'"
    assert subprocess.run([sys.executable, "-c", code], env=CLEAN, timeout=60).returncode == 0
