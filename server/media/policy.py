"""Which schemes, hosts and ports an operator lets pictures come from.

Names only: what a name leads to is `media.addresses`'s to judge, which holds whatever is allowed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from server.media.addresses import MediaUrl
from server.protocol.errors import ApiError, bad_request
from server.protocol.flags import SettingsError, flag

SCHEMES = ("http", "https", "data")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class PolicySettings(Protocol):
    """Lists with commas between; `server.settings.Settings` has them, and so have a worker's own."""

    @property
    def media_schemes(self) -> str: ...
    @property
    def media_hosts(self) -> str: ...
    @property
    def media_denied_hosts(self) -> str: ...
    @property
    def media_ports(self) -> str: ...


@dataclass(frozen=True)
class MediaPolicy:
    """`*` among hosts stands for every host, `*.example.org` for all below example.org but not itself."""

    schemes: tuple[str, ...]
    hosts: tuple[str, ...]
    denied_hosts: tuple[str, ...]
    ports: tuple[range, ...]

    def check(self, url: MediaUrl) -> None:
        """Raises ApiError 400. Holds for every redirect, too."""
        self.check_scheme(url.scheme)
        host = url.host.rstrip(".")
        if not _matches(host, self.hosts) or _matches(host, self.denied_hosts):
            raise not_allowed("pictures are not fetched from its host")
        if not any(url.port in ports for ports in self.ports):
            raise not_allowed(f"pictures are not fetched from port {url.port}, but from {self._ports}")

    def check_scheme(self, scheme: str) -> None:
        """Raises ApiError 400."""
        if scheme not in self.schemes:
            raise not_allowed(f"pictures by {scheme}: are not taken here, but by {', '.join(self.schemes)}")

    @property
    def _ports(self) -> str:
        return ", ".join(str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}" for ports in self.ports)


def read_policy(settings: PolicySettings) -> MediaPolicy:
    """Raises SettingsError that names the setting."""
    schemes = _list(settings.media_schemes)
    if not schemes or not set(schemes) <= set(SCHEMES):
        raise SettingsError(f"{flag('media_schemes')}: expected some of {', '.join(SCHEMES)}")
    ports = tuple(_range(text) for text in _list(settings.media_ports))
    if not ports:
        raise SettingsError(f"{flag('media_ports')}: expected at least one port; --media-schemes data fetches nothing")
    hosts = _hosts("media_hosts", settings.media_hosts)
    if not hosts:
        raise SettingsError(f"{flag('media_hosts')}: expected at least one host, or * for all")
    return MediaPolicy(schemes, hosts, _hosts("media_denied_hosts", settings.media_denied_hosts), ports)


def not_allowed(reason: str) -> ApiError:
    return bad_request(f"The picture's URL is not accepted: {reason}.", code="image_url_not_allowed")


def _matches(host: str, patterns: tuple[str, ...]) -> bool:
    return any(
        pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in patterns
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _hosts(name: str, text: str) -> tuple[str, ...]:
    patterns = _list(text)
    for pattern in patterns:
        if pattern != "*" and not _PATTERN.fullmatch(pattern):
            raise SettingsError(f"{flag(name)}: {pattern!r} is no host; write example.org, *.example.org or an address")
    return patterns


def _range(text: str) -> range:
    if text == "*":
        return range(1, 65536)
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < first <= last < 65536:
        raise SettingsError(f"{flag('media_ports')}: {text!r} is no port; write 443, 8000-8099 or *")
    return range(first, last + 1)
