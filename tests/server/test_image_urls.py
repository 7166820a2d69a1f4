"""Pictures by URL, through the public port: what is refused, with which words, and that nothing was asked for it.

Servers are real ones on loopback; what names lead to is said here.
"""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from aiohttp import web


@pytest.fixture
async def origin(open_origin, png):
    """A server of pictures: (port, paths asked for, set when a connection to /endless was cut)."""

    async def answer(request):
        match request.path:
            case "/slow":
                await asyncio.sleep(30)
            case "/large":
                return web.Response(body=png() + bytes(60_000))
            case "/bomb":
                return web.Response(body=gzip.compress(bytes(1_000_000)), headers={"Content-Encoding": "gzip"})
            case "/headers":
                return web.Response(body=png(), headers={f"X-{number}": "x" * 4000 for number in range(500)})
            case "/to":
                return web.Response(status=302, headers={"Location": request.query["to"]})
        return web.Response(body=png())

    opened = await open_origin(answer)
    return opened.port, opened.asked, opened.cut


async def refused(client, url, **more):
    """The error for a picture of the second message, whose place it must name."""
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
    ]
    status, body, _ = await client.post({"model": "demo", "messages": messages}, **more)
    assert set(body) == {"error"}, url
    error = body["error"]
    assert status in (400, 413), (url, error)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "messages[1].content[0].image_url"
    return error


SPELLINGS = {
    "file:///etc/passwd": "files are never read",
    "file://localhost/etc/passwd": "files are never read",
    "FILE:///etc/passwd": "files are never read",
    "/etc/passwd": "files are never read",
    "etc/passwd": "files are never read",
    "../../secret.png": "files are never read",
    "C:\\pictures\\secret.png": "backslash",
    "\\\\host\\share\\secret.png": "backslash",
    "http:\\\\127.0.0.1\\": "backslash",
    "http://example.org\\@127.0.0.1/": "backslash",
    "ftp://example.org/p.png": "only data:, http:// and https://",
    "gopher://127.0.0.1:6379/_": "only data:, http:// and https://",
    "javascript:alert(1)": "only data:, http:// and https://",
    "//example.org/p.png": "only data:, http:// and https://",
    "http:/example.org/p.png": "only data:, http:// and https://",
    "http://user:pw@example.org/": "user names and passwords",
    "http://example.org@127.0.0.1/": "user names and passwords",
    "http://2130706433/": "four decimal numbers",
    "http://0177.0.0.1/": "four decimal numbers",
    "http://0x7f.0.0.1/": "four decimal numbers",
    "http://0x7f000001/": "four decimal numbers",
    "http://127.1/": "four decimal numbers",
    "http://127.0.0.1./": "four decimal numbers",
    "http://[fe80::1%25eth0]/": "IPv6",
    "http://[fe80::1%eth0]/": "IPv6",
    "http://127。0。0。1/": "ASCII",
    "http://①②⑦.0.0.1/": "ASCII",
    "http://exämple.org/": "ASCII",
    "http://exa\tmple.org/": "white space or control",
    "ht\ntp://example.org/": "white space or control",
    "http://example.org/\r\nHost:%20inside": "white space or control",
    " http://example.org/": "white space or control",
    "http://example.org/\u2028": "white space or control",
    "http://example.org/\x00": "white space or control",
    "http://example.org:0/": "port cannot be read",
    "http://example.org:99999/": "host or port cannot be read",
    "http://a..b/": "its host is no name",
    "http://example.org/" + "a" * 5000: "longer than 4096 characters",
}


async def test_spellings_that_read_files_or_can_be_read_in_two_ways_are_refused_with_the_reason(
    new_names, start_controller, start_worker
):
    names = new_names()
    client = await start_controller(resolve=names)
    worker = await start_worker("w1", client)
    for url, reason in SPELLINGS.items():
        error = await refused(client, url)
        assert error["code"] == "invalid_image_url", url
        assert reason in error["message"], (url, error["message"])
        assert "passwd" not in error["message"]
    assert names.asked == worker.bodies == []


INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "198.18.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "2001:db8::1",
]


async def test_addresses_that_lead_inside_are_refused_as_they_are_and_behind_a_name(
    new_names, start_controller, start_worker
):
    names = new_names(inside_test=[[address] for address in INSIDE for _ in "12"], two_test=[["1.1.1.1", "10.0.0.1"]])
    client = await start_controller(resolve=names)
    worker = await start_worker("w1", client)
    for address in INSIDE:
        host = f"[{address}]" if ":" in address else address
        for url in (f"http://{host}/p.png", "https://inside.test/p.png", "http://inside.test/p.png"):
            error = await refused(client, url)
            assert error["code"] == "image_url_not_allowed", (address, error)
            assert address not in error["message"]
    assert (await refused(client, "http://two.test/"))["code"] == "image_url_not_allowed"
    assert await client.metric("media_fetches_total", outcome="refused") == 3 * len(INSIDE) + 1
    assert worker.bodies == []


async def test_a_name_that_changes_its_answer_after_the_check_changes_nothing(
    new_names, start_controller, start_worker, origin, png, data_url, with_image
):
    port, asked, _ = origin
    names = new_names(rebinding_test=[["127.0.0.1"], ["169.254.169.254"]])
    client = await start_controller(resolve=names, media_allow_private=True, media_ports="*")
    worker = await start_worker("w1", client)
    assert (await client.chat(with_image(f"http://rebinding.test:{port}/p.png")))[0] == 200
    assert (names.asked, asked) == (["rebinding.test"], ["/p.png"])
    assert worker.bodies[0]["messages"][0]["content"][1]["image_url"]["url"] == data_url(png())
    # The other way round: what is refused once is looked up anew, and checked anew.
    error = await refused(client, f"http://rebinding.test:{port}/q.png")
    assert error["code"] == "image_url_not_allowed"
    assert asked == ["/p.png"]


async def test_every_redirect_is_held_to_the_same_rules(new_names, start_controller, start_worker, origin):
    port, asked, _ = origin
    names = new_names(
        pictures_test=[["127.0.0.1"]],
        metadata_test=[["169.254.169.254"]],
        other_test=[["127.0.0.1"]],
        v6_test=[["::1"]],
    )
    client = await start_controller(
        resolve=names,
        media_allow_private=True,
        media_ports=f"{port}",
        media_denied_hosts="other.test",
        media_redirects=2,
    )
    worker = await start_worker("w1", client)
    for target, code in {
        "http://169.254.169.254/latest/": "image_url_not_allowed",
        f"http://169.254.169.254:{port}/latest/": "image_url_not_allowed",
        f"http://metadata.test:{port}/": "image_url_not_allowed",
        f"//metadata.test:{port}/": "image_url_not_allowed",
        f"http://other.test:{port}/": "image_url_not_allowed",
        "http://pictures.test:22/": "image_url_not_allowed",
        "file:///etc/passwd": "invalid_image_url",
        "http://[": "image_fetch_failed",
        "http://u:p@pictures.test/": "invalid_image_url",
        f"http://2130706433:{port}/": "invalid_image_url",
        "data:image/png;base64,AAAA": "invalid_image_url",
        "/to?to=/to%3Fto%3D/to": "image_fetch_failed",
    }.items():
        asked.clear()
        error = await refused(client, f"http://pictures.test:{port}/to?to={target}")
        assert error["code"] == code, (target, error)
        assert set(asked) == {"/to"}, target
    assert len(asked) == 3  # the first and two redirects
    assert worker.bodies == []


@pytest.mark.parametrize(
    ("settings", "open_hosts", "shut_hosts"),
    [
        ({"media_hosts": "a.test"}, ["a.test", "A.TEST", "a.test."], ["b.test", "x.a.test", "a.test.evil.test"]),
        ({"media_hosts": "*.a.test, b.test"}, ["x.a.test", "x.y.a.test", "b.test"], ["a.test", "xa.test", "x.b.test"]),
        ({"media_denied_hosts": "a.test, *.b.test"}, ["x.a.test", "b.test"], ["a.test", "a.test.", "x.b.test"]),
        ({"media_hosts": "*.a.test", "media_denied_hosts": "x.a.test"}, ["y.a.test"], ["x.a.test"]),
    ],
)
async def test_hosts_are_allowed_and_denied_by_name(
    start_controller, start_worker, origin, with_image, settings, open_hosts, shut_hosts
):
    port, asked, _ = origin

    async def anywhere(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    client = await start_controller(resolve=anywhere, media_allow_private=True, media_ports="*", **settings)
    await start_worker("w1", client)
    for host in open_hosts:
        assert (await client.chat(with_image(f"http://{host}:{port}/{host}")))[0] == 200, host
    asked.clear()
    for host in shut_hosts:
        error = await refused(client, f"http://{host}:{port}/{host}")
        assert error["code"] == "image_url_not_allowed"
        assert "from its host" in error["message"]
    assert asked == []


async def test_by_default_only_the_ports_of_the_web_are_open(start_controller, start_worker, origin):
    port, asked, _ = origin
    client = await start_controller(media_allow_private=True)
    await start_worker("w1", client)
    for other in (port, 22, 25, 6379, 8000):
        error = await refused(client, f"http://127.0.0.1:{other}/")
        assert error["code"] == "image_url_not_allowed"
        assert f"not fetched from port {other}, but from 80, 443" in error["message"]
    assert asked == []


async def test_schemes_can_be_shut(start_controller, start_worker, origin, png, data_url, with_image):
    port, asked, _ = origin
    shared = {"media_allow_private": True, "media_ports": "*"}
    data_only = await start_controller(media_schemes="data", **shared)
    await start_worker("w1", data_only)
    assert (await data_only.chat(with_image(data_url(png()))))[0] == 200
    for scheme in ("http", "https"):
        error = await refused(data_only, f"{scheme}://127.0.0.1:{port}/")
        assert (error["code"], asked) == ("image_url_not_allowed", [])
        assert f"by {scheme}: are not taken here, but by data" in error["message"]
    fetched_only = await start_controller(media_schemes="http", **shared)
    assert (await refused(fetched_only, data_url(png())))["code"] == "image_url_not_allowed"
    assert (await fetched_only.chat(with_image(f"http://127.0.0.1:{port}/")))[0] == 200


async def test_what_comes_too_large_too_slowly_or_compressed_is_refused(start_controller, start_worker, origin):
    port, _, cut = origin
    client = await start_controller(
        media_allow_private=True, media_ports="*", max_image_bytes=100_000, media_seconds=1.0
    )
    worker = await start_worker("w1", client)
    error = await refused(client, f"http://127.0.0.1:{port}/endless")
    assert error["code"] == "request_too_large"
    await asyncio.wait_for(cut.wait(), 10)
    for path, reason in {"slow": "within 1 seconds", "bomb": "compressed", "headers": "could not be read"}.items():
        error = await refused(client, f"http://127.0.0.1:{port}/{path}")
        assert (error["code"], reason in error["message"]) == ("image_fetch_failed", True), error
    assert worker.bodies == []
    assert client.controller.room.bytes == 0


async def test_bytes_that_are_no_http_are_the_clients_error(start_controller, start_worker, stack):
    """A server that answers anything else, as an SSH or a Redis server would; half an answer; a transfer in gzip."""
    answers = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\n\x1f\x8b\x08\x00\x00\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx",
        b"",
    ]
    sent = iter(answers)

    async def speak(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(sent))
        await writer.drain()
        writer.close()

    server = await stack.enter_async_context(await asyncio.start_server(speak, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    client = await start_controller(media_allow_private=True, media_ports="*")
    worker = await start_worker("w1", client)
    for number, answer in enumerate(answers):
        error = await refused(client, f"http://127.0.0.1:{port}/{number}")
        assert error["code"] in ("image_fetch_failed", "invalid_image", "invalid_image_url"), (answer, error)
        assert "OpenSSH" not in error["message"] and "0x" not in error["message"]
    assert worker.bodies == []


async def test_all_pictures_of_a_request_share_one_budget_of_bytes(
    start_controller, start_worker, origin, png, data_url, with_image
):
    port, asked, _ = origin
    client = await start_controller(
        media_allow_private=True, media_ports="*", max_request_image_bytes=150_000, max_image_bytes=100_000
    )
    worker = await start_worker("w1", client)
    one, two, three = (with_image(f"http://127.0.0.1:{port}/large?{number}")[1] for number in range(3))
    assert (await client.chat([one, two]))[0] == 200
    status, body, _ = await client.chat([one, two, three])
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    assert "together larger than 150000 bytes" in body["error"]["message"]
    asked.clear()
    inline = with_image(data_url(png() + bytes(99_000)))[1]
    other = with_image(data_url(png(41) + bytes(99_000)))[1]
    status, body, _ = await client.chat([inline, other, one])
    assert (status, body["error"]["param"], asked) == (413, "messages[0].content[1].image_url", [])
    assert len(worker.bodies) == 1
    assert client.controller.room.bytes == 0


async def test_a_worker_is_sent_no_address_to_fetch_from(start_controller, start_worker, origin, with_image):
    port, _, _ = origin
    client = await start_controller(media_allow_private=True, media_ports="*")
    worker = await start_worker("w1", client)
    assert (await client.chat(with_image(f"http://127.0.0.1:{port}/p.png?secret=1")))[0] == 200
    assert "http:" not in json.dumps(worker.bodies)
