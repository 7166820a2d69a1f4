"""Which URLs and which addresses a picture may come from.

Pure: no network, no DNS. The URL parser takes a narrow part of RFC 3986 and refuses whatever two parsers might read in
two ways (backslash, credentials, control characters, odd spellings of IPv4).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from server.protocol.errors import ApiError, bad_request

MAX_URL_LENGTH = 4096
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(\.{_LABEL})*\.?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")

# What `ipaddress` calls global although it leads back inside, or embeds an IPv4 address that does.
_NEVER = tuple(
    ipaddress.ip_network(block)
    for block in (
        "168.63.129.16/32",  # Azure's host metadata, in public space
        "100.64.0.0/10",  # carrier NAT; Alibaba's metadata
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "240.0.0.0/4",
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4
        "5f00::/16",
        "fec0::/10",
    )
)


@dataclass(frozen=True)
class MediaUrl:
    """A URL that was read in the one way it can be read."""

    scheme: str  # http | https
    host: str  # lower case; an IPv6 address without brackets
    port: int
    target: str  # path and query, as sent
    address: IPAddress | None  # where the host is an address itself

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"


def parse_media_url(url: str) -> MediaUrl:
    """Raises ApiError 400 that says what is wrong with the URL (and does not repeat it)."""
    if len(url) > MAX_URL_LENGTH:
        raise _refused(f"it is longer than {MAX_URL_LENGTH} characters")
    if "\\" in url:
        raise _refused("it holds a backslash")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise _refused("it holds white space or control characters")
    if not url.isascii():
        raise _refused("percent-encode what is not ASCII in it, and write its host in its ASCII form (xn--...)")
    scheme = url.partition(":")[0].lower()
    if scheme not in ("http", "https") or not url[len(scheme) :].startswith("://"):
        raise _refused("only data:, http:// and https:// are accepted; files are never read")
    if not _URL_CHARACTERS.fullmatch(url):
        raise _refused("it holds characters that a URL must percent-encode")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if scheme == "https" else 80)
        host = parts.hostname or ""
    except ValueError:
        raise _refused("its host or port cannot be read") from None
    if "@" in parts.netloc:
        raise _refused("user names and passwords in URLs are not accepted")
    if parts.port == 0 or parts.netloc.endswith(":"):
        raise _refused("its port cannot be read")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return MediaUrl(scheme, host, port, target, _literal(host, bracketed="[" in parts.netloc))


def _literal(host: str, *, bracketed: bool) -> IPAddress | None:
    """The address that the host is, or None for a name. Raises ApiError for hosts that are neither, plainly."""
    if bracketed:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise _refused("its host is no IPv6 address") from None
        if address.scope_id is not None:
            raise _refused("zones of IPv6 addresses are not accepted")
        return address
    if not _NAME.fullmatch(host):
        raise _refused("its host is no name")
    if _NUMERIC_LABEL.fullmatch(host.rstrip(".").rpartition(".")[2]):
        # Some resolvers read 2130706433, 0x7f.1 or 127.1 as 127.0.0.1: only the plain spelling passes.
        try:
            return ipaddress.IPv4Address(host)
        except ValueError:
            raise _refused("write an IPv4 address as four decimal numbers") from None
    return None


def is_allowed(address: IPAddress, *, allow_private: bool = False) -> bool:
    """Whether the controller may connect there on a client's behalf.

    `allow_private` opens private and loopback ranges, for pictures served inside one's own network; link-local (cloud
    metadata), multicast, unspecified and reserved addresses stay shut.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        if address.ipv4_mapped is not None:
            return is_allowed(address.ipv4_mapped, allow_private=allow_private)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    if address.is_loopback or (address.is_private and _is_local_network(address)):
        return allow_private
    if any(address in block for block in _NEVER if block.version == address.version):
        return False
    return address.is_global and not address.is_reserved


_LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_CLOUD_METADATA = ipaddress.ip_network("fd00:ec2::/32")  # AWS's, among private addresses


def _is_local_network(address: IPAddress) -> bool:
    if address.version == 6 and address in _CLOUD_METADATA:
        return False
    return any(address in block for block in _LOCAL_NETWORKS if block.version == address.version)


def _refused(reason: str) -> ApiError:
    return bad_request(f"The picture's URL is not accepted: {reason}.", code="invalid_image_url")
