"""Fetches pictures that requests name by URL, without becoming a way into the network that the controller stands in.

A name is resolved once, every address it has is checked, and the connection goes to those very addresses: there is no
second look-up that could answer otherwise. Redirects are followed by hand, each held to the same rules. It knows
nothing of pictures: what the bytes are is for `media.images` to find out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from urllib.parse import urljoin

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from prometheus_client import Counter

from server.media.addresses import IPAddress, MediaUrl, is_allowed, parse_media_url
from server.media.freshness import keep_seconds
from server.media.places import Place, Places
from server.media.policy import PolicySettings, not_allowed, read_policy
from server.protocol.errors import ApiError, bad_request, overloaded, too_large

Resolve = Callable[[str, int], Awaitable[list[str]]]  # (host, port) -> addresses
Reserve = Callable[[int], None]  # told of bytes before they are kept; may raise ApiError

_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_ADDRESSES = 8


# Threads of their own: names that take long to resolve must not keep the loop's, which look up the workers, too.
# More than fetches run at once by default, so that one tenant's slow names leave some for the others'.
_LOOKUPS = ThreadPoolExecutor(64, thread_name_prefix="lookup")


async def resolve_by_system(host: str, port: int) -> list[str]:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look_up)
    return [str(entry[4][0]) for entry in found]


class FetchSettings(PolicySettings, Protocol):
    """The limits that a fetcher holds; `server.settings.Settings` has them, and so have a worker's own."""

    @property
    def max_image_bytes(self) -> int: ...
    @property
    def media_allow_private(self) -> bool: ...
    @property
    def media_concurrency(self) -> int: ...
    @property
    def media_connect_seconds(self) -> float: ...
    @property
    def media_redirects(self) -> int: ...
    @property
    def media_seconds(self) -> float: ...


class FetchMetrics(Protocol):
    media_fetches: Counter  # by outcome


@dataclass(frozen=True)
class Fetched:
    """A picture's bytes, and for how many seconds the servers on the way to it let them be kept."""

    data: bytes
    keep_seconds: float


class ImageFetcher:
    """get(url) -> the picture, or ApiError."""

    def __init__(
        self,
        settings: FetchSettings,
        metrics: FetchMetrics,
        resolve: Resolve = resolve_by_system,
        *,
        keep_seconds: float = 0.0,
    ) -> None:
        """`keep_seconds`: the longest that a picture may be kept. Raises SettingsError for lists that make no sense."""
        self._settings = settings
        self._policy = read_policy(settings)
        self._keep_seconds = keep_seconds
        self._metrics = metrics
        self._resolve = resolve
        self._places = Places(settings.media_concurrency)

    async def fetch(self, url: str) -> bytes:
        """What `get` gives, where nobody keeps it or counts its bytes."""
        return (await self.get(url)).data

    async def get(self, url: str, reserve: Reserve = lambda size: None, tenant: str = "") -> Fetched:
        """Raises ApiError 400 (refused, unreachable, not answered with 200, too slow), 413 (too large) or 429 (others'
        fetches left it no place in time)."""
        outcome = "failed"
        try:
            try:
                async with asyncio.timeout(self._settings.media_seconds):
                    place = await self._places.take(tenant)
            except TimeoutError:
                outcome = "crowded"
                raise overloaded("Too many pictures are being fetched; try again.", 1) from None
            try:
                async with asyncio.timeout(self._settings.media_seconds):
                    fetched = await self._follow(url, reserve, place)
            except TimeoutError:
                outcome = "timeout"
                raise _failed(f"it did not arrive within {self._settings.media_seconds:g} seconds") from None
            finally:
                place.give_back()
            outcome = "ok"
            return fetched
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        except ApiError as error:
            if error.code in ("invalid_image_url", "image_url_not_allowed"):
                outcome = "refused"
            elif error.status == 413:
                outcome = "too_large"
            raise
        finally:
            self._metrics.media_fetches.labels(outcome).inc()

    async def _follow(self, url: str, reserve: Reserve, place: Place) -> Fetched:
        keep = self._keep_seconds
        for _ in range(self._settings.media_redirects + 1):
            parsed = parse_media_url(url)
            self._policy.check(parsed)
            answer = await self._get(parsed, reserve, place)
            keep = min(keep, answer.keep_seconds)
            if isinstance(answer, Fetched):
                return Fetched(answer.data, keep)
            try:
                url = urljoin(url, answer.location)
            except ValueError:
                raise _failed("it was redirected to what is no URL") from None
        raise _failed(f"it was redirected more than {self._settings.media_redirects} times")

    async def _get(self, url: MediaUrl, reserve: Reserve, place: Place) -> Fetched | _Redirect:
        addresses = await self._validated_addresses(url, place)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(url.host, addresses), use_dns_cache=False, force_close=True, limit=1
        )
        # trust_env=False: a proxy from the environment would resolve the name again, out of our sight.
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._settings.media_connect_seconds),
        ) as session:
            try:
                async with session.get(
                    yarl.URL(url.text, encoded=True),
                    allow_redirects=False,
                    headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "tephra"},
                ) as response:
                    keep = keep_seconds(response.headers, self._keep_seconds)
                    if response.status in _REDIRECTS and "Location" in response.headers:
                        return _Redirect(response.headers["Location"], keep)
                    return Fetched(await self._read(response, reserve), keep)
            except aiohttp.ConnectionTimeoutError:
                raise _failed("its server did not accept a connection in time") from None
            except (aiohttp.ClientError, OSError, ValueError):
                # The reason stays here: it would tell a stranger what answers inside our network.
                raise _failed("its server could not be read from") from None

    async def _read(self, response: aiohttp.ClientResponse, reserve: Reserve) -> bytes:
        if response.status != 200:
            raise _failed(f"its server answered with status {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed("its server sent it compressed although that was not asked for")
        limit = self._settings.max_image_bytes
        if (response.content_length or 0) > limit:
            raise too_large(f"The picture is larger than {limit} bytes.")
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            if len(data) + len(chunk) > limit:
                raise too_large(f"The picture is larger than {limit} bytes.")
            reserve(len(chunk))
            data += chunk
        return bytes(data)

    async def _validated_addresses(self, url: MediaUrl, place: Place) -> list[IPAddress]:
        if url.address is not None:
            addresses: list[IPAddress] = [url.address]
        else:
            try:
                # A look-up keeps its thread to its end, whoever still waits for it: so long it keeps its place.
                found = asyncio.ensure_future(self._resolve(url.host, url.port))
                place.held_by(found)
                names = dict.fromkeys(await asyncio.shield(found))
                addresses = [ipaddress.ip_address(text) for text in names][:_MAX_ADDRESSES]
            except (OSError, ValueError):
                raise _failed("its host was not found") from None
        if not addresses:
            raise _failed("its host was not found")
        # One forbidden address is enough: a name that points both ways is no honest picture server.
        if not all(is_allowed(one, allow_private=self._settings.media_allow_private) for one in addresses):
            raise not_allowed("it leads to an address that this server does not fetch from")
        return addresses


@dataclass(frozen=True)
class _Redirect:
    location: str
    keep_seconds: float


class _Pinned(AbstractResolver):
    """Answers aiohttp's look-up with the addresses that were checked, and with nothing else."""

    def __init__(self, host: str, addresses: list[IPAddress]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host != self._host:
            raise OSError("not the host that was checked")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


def _failed(reason: str) -> ApiError:
    return bad_request(f"The picture could not be fetched: {reason}.", code="image_fetch_failed")
