"""Several real controller processes on one port: what they share, what is lost when one dies, how all stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
from aiohttp import web

from server.__main__ import run
from server.processes import SharedPort
from server.protocol.flags import SettingsError
from server.settings import Settings, read_settings

pytestmark = pytest.mark.timeout(180)

SECRET = "the-workers-secret"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}


class Running:
    """A controller of several processes, seen from outside."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.port = urlsplit(url).port

    def controllers(self) -> dict[int, psutil.Process]:
        """The processes that serve, by pid; not the Valkey beside them."""
        children = psutil.Process(self.process.pid).children()
        return {child.pid: child for child in children if "valkey" not in child.name()}

    def owner(self, local_port: int) -> int | None:
        """Which process has the connection that a client calls its port `local_port`."""
        for pid, process in self.controllers().items():
            for connection in process.net_connections("tcp"):
                if connection.raddr and connection.laddr.port == self.port and connection.raddr.port == local_port:
                    return pid
        return None


@asynccontextmanager
async def running(count: int, *arguments: str):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "--port", "0", "--processes", str(count), "--worker-secret", SECRET),
        *("--heartbeat-seconds", "0.1", "--lease-seconds", "10", "--poll-seconds", "0.05", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=CLEAN,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("Tephra controller ready at http://127.0.0.1:"), (await process.stderr.read()).decode()
        yield Running(process, line.split()[-1])
    finally:
        if process.returncode is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        await process.wait()


@asynccontextmanager
async def one_connection():
    """A client with a connection of its own, whose local port is told by `port_of`."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def served_by_all(system: Running, until) -> None:
    """Every process knows the worker."""
    seen: set[int] = set()
    while len(seen) < len(system.controllers()):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        pid = system.owner(writer.get_extra_info("sockname")[1])
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if pid is not None and b'"workers":1' in await reader.read():
            seen.add(pid)
        writer.close()


def chat(url: str, session: aiohttp.ClientSession, **fields):
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], **fields}
    return session.post(f"{url}/v1/chat/completions", json=body)


def ended(pid: int) -> bool:
    """Whether it holds nothing any more; its parent may not have asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_killed_process_takes_its_own_requests_along_and_no_others(start_worker, until):
    release = asyncio.Event()
    async with running(3) as system:
        worker = await start_worker("w1")
        answer = worker.handler

        async def held(request: web.Request) -> web.StreamResponse:
            await release.wait()
            return await answer(request)

        worker.handler = held
        await worker.join(system.url)
        await served_by_all(system, until)
        requests = {}
        connected: asyncio.Queue[int] = asyncio.Queue()

        async def ask() -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
            connected.put_nowait(writer.get_extra_info("sockname")[1])
            body = b'{"model":"demo","messages":[{"role":"user","content":"hi"}]}'
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            try:
                text = await reader.read()
            except ConnectionResetError:
                text = b""
            writer.close()
            return "answered" if b"200 OK" in text and b"hello" in text else "lost"

        for _ in range(24):
            task = asyncio.create_task(ask())
            requests[await connected.get()] = task
        await until(lambda: len(worker.bodies) == 24, 60)
        owners = {port: system.owner(port) for port in requests}
        shares = Counter(owners.values())
        assert None not in shares
        assert len(shares) > 1, "the kernel gave all to one"
        victim = shares.most_common()[-1][0]
        os.kill(victim, signal.SIGKILL)
        lost = [port for port, owner in owners.items() if owner == victim]
        assert [await requests[port] for port in lost] == ["lost"] * len(lost)
        await until(lambda: ended(victim))  # its listening socket too: what the kernel had queued there is lost with it
        worker.handler = answer
        async with one_connection() as session:  # whoever asks now is answered, while the place is still empty or again
            for _ in range(20):
                async with chat(system.url, session, stream=True) as response:
                    assert response.status == 200
                    assert (await response.text()).endswith("data: [DONE]\n\n")
        release.set()
        left = [task for port, task in requests.items() if owners[port] != victim]
        assert await asyncio.gather(*left) == ["answered"] * len(left)
        await until(lambda: len(system.controllers()) == 3 and victim not in system.controllers(), 30)
        await served_by_all(system, until)


async def test_metrics_are_those_of_all_processes_whoever_tells_them(start_worker, until):
    async with running(2) as system:
        worker = await start_worker("w1")
        await worker.join(system.url)
        await served_by_all(system, until)

        async def told() -> list[str]:
            """By each of several connections, so by either process."""
            texts = []
            for _ in range(12):
                async with one_connection() as session, session.get(f"{system.url}/metrics") as response:
                    texts.append(await response.text())
            return texts

        def sample(text: str, name: str) -> float:
            match = re.search(rf"^tephra_controller_{re.escape(name)} (\S+)$", text, re.MULTILINE)
            return float(match[1]) if match else 0.0

        answered = 'requests_total{route="/v1/chat/completions",status="200"}'
        for _ in range(30):
            async with one_connection() as session, chat(system.url, session) as response:
                assert response.status == 200
        texts = await told()
        assert {sample(text, answered) for text in texts} == {30.0}
        assert {sample(text, 'workers{state="healthy"}') for text in texts} == {1.0}
        assert {sample(text, "registry_connected") for text in texts} == {1.0}
        assert {sample(text, "num_requests_running") for text in texts} == {0.0}
        assert {sample(text, 'registrations_total{event="joined"}') for text in texts} == {1.0}
        assert all('\ntephra:worker_weight{worker="w1"} ' in text for text in texts)

        release, answer = asyncio.Event(), worker.handler

        async def held(request: web.Request) -> web.StreamResponse:
            await release.wait()
            return await answer(request)

        worker.handler = held
        already = len(worker.bodies)

        async def ask() -> int:
            try:
                async with one_connection() as session, chat(system.url, session) as response:
                    return response.status
            except aiohttp.ClientError:
                return 0

        asking = [asyncio.create_task(ask()) for _ in range(10)]
        await until(lambda: len(worker.bodies) == already + 10, 60)
        assert {sample(text, "num_requests_running") for text in await told()} == {10.0}

        victim = next(iter(system.controllers()))
        os.kill(victim, signal.SIGKILL)  # what it counted stays counted, what it had under way does not
        await until(lambda: victim not in system.controllers() and len(system.controllers()) == 2, 30)
        release.set()
        statuses = Counter(await asyncio.gather(*asking))
        assert statuses[0] + statuses[200] == 10
        texts = await told()
        assert {sample(text, answered) for text in texts} == {30.0 + statuses[200]}
        assert {sample(text, "num_requests_running") for text in texts} == {0.0}

        await worker.leave()
        await until(lambda: True)
        while any('worker="w1"' in text for text in await told()):
            await asyncio.sleep(0.05)


async def test_operators_are_told_of_all_processes_and_which_one_hangs(start_worker, until):
    async with running(3) as system:
        worker = await start_worker("w1")
        await worker.join(system.url)
        await served_by_all(system, until)
        for _ in range(20):
            async with one_connection() as session, chat(system.url, session) as response:
                assert response.status == 200

        async def ask() -> tuple[int | None, dict]:
            """Which process answered, and what it told; nothing where it is the one that hangs."""
            reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
            writer.write(b"GET /admin/stats HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
            try:
                async with asyncio.timeout(5):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(re.search(rb"content-length: (\d+)", head)[1])
                    told = json.loads(await reader.readexactly(length))
                return system.owner(writer.get_extra_info("sockname")[1]), told
            except TimeoutError:
                return None, {}
            finally:
                writer.close()

        answers = [await ask() for _ in range(12)]
        assert len({pid for pid, _ in answers}) > 1, "the kernel gave all to one"
        for _, told in answers:
            assert told["requests_total"] == len(told["recent"]) == 20
            assert told["processes"] == {"total": 3, "missing": []}

        hanging = next(iter(system.controllers()))
        os.kill(hanging, signal.SIGSTOP)
        try:
            told = [told for _, told in await asyncio.gather(*(ask() for _ in range(12))) if told]
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert told
        (missing,) = {tuple(one["processes"]["missing"]) for one in told}
        assert len(missing) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_the_answers_of_all_processes_end(start_worker, until, number):
    async with running(2, "--shutdown-seconds", "10") as system:
        worker = await start_worker("w1")
        answer = worker.handler

        async def slow(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0.5)
            return await answer(request)

        worker.handler = slow
        await worker.join(system.url)
        await served_by_all(system, until)
        children = psutil.Process(system.process.pid).children()

        async def ask() -> int:
            async with one_connection() as session, chat(system.url, session) as response:
                return response.status

        asking = [asyncio.create_task(ask()) for _ in range(12)]
        await until(lambda: len(worker.bodies) == 12, 60)
        system.process.send_signal(number)
        assert await asyncio.gather(*asking) == [200] * 12
        assert await asyncio.wait_for(system.process.wait(), 30) == 0
        assert not any(child.is_running() for child in children)  # the Valkey among them


async def test_no_process_outlives_a_killed_parent(until):
    async with running(2) as system:
        children = psutil.Process(system.process.pid).children()
        assert len(children) == 3
        system.process.kill()
        await system.process.wait()
        await until(
            lambda: all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in children), 30
        )


def test_what_keeps_it_from_starting_is_told_in_one_line(capfd):
    code = run(Settings(port=0, processes=3, redis_url="redis://:hush@127.0.0.1:1/0", worker_secret="s"))
    output = capfd.readouterr()
    assert code == 1
    assert len(output.err.splitlines()) == 1, output.err
    assert "Redis" in output.err and "hush" not in output.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(Settings(port=port, processes=2)) == 1
        assert f"127.0.0.1:{port}" in capfd.readouterr().err


def test_a_port_that_another_controller_shares_is_taken_all_the_same():
    first = SharedPort("127.0.0.1", 0)
    listener = first.listener()
    listener.listen()
    with pytest.raises(OSError):
        SharedPort("127.0.0.1", first.port)
    listener.close()
    first.close()


def test_how_many_processes_there_may_be_is_bounded():
    assert read_settings(["--processes", "4"], {}).processes == 4
    for bad in ("0", "65", "many"):
        with pytest.raises(SettingsError, match="--processes"):
            read_settings(["--processes", bad], {})
