"""The doors that are not the clients': the workers' shared secret, the operator's admin key."""

from __future__ import annotations

import ipaddress

from server.auth.bearer import BearerKeys, Headers
from server.protocol.errors import ApiError

_LOOPBACK_NAMES = (b"localhost", b"127.0.0.1", b"[::1]")
_PROXY_HEADERS = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class WorkerAuth:
    """/internal/*: the shared secret, always. With none configured nobody joins."""

    def __init__(self, secret: str | None) -> None:
        self._keys = BearerKeys([secret] if secret else [])

    def check(self, headers: Headers) -> None:
        """Raises ApiError 401."""
        if not self._keys.opens(headers):
            raise ApiError(
                401,
                "Wrong worker secret: start the worker with the controller's TEPHRA_WORKER_SECRET.",
                type="authentication_error",
                code="invalid_worker_secret",
                headers={"WWW-Authenticate": "Bearer"},
            )


class AdminAuth:
    """/admin/*: the admin key. Where none is configured, callers on this machine may read, so that `tephra up` has a
    dashboard at once; nobody else may.

    "On this machine" asks three things: the peer is loopback, the Host header names loopback (a web page that rebinds
    its own name to 127.0.0.1 does not pass), and no reverse proxy stands between (it would make every caller local).
    """

    def __init__(self, key: str | None) -> None:
        self._keys = BearerKeys([key] if key else [])

    def check(self, headers: Headers, client: tuple[str, int] | None) -> None:
        """Raises ApiError 401 or 403."""
        if self._keys.required:
            if not self._keys.opens(headers):
                raise ApiError(
                    401,
                    "Missing or wrong admin key: send it as 'Authorization: Bearer KEY'.",
                    type="authentication_error",
                    code="invalid_admin_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif not _from_this_machine(headers, client):
            raise ApiError(
                403,
                "Without a TEPHRA_ADMIN_KEY on the controller this is open to callers on its own machine only.",
                type="permission_error",
                code="admin_key_not_configured",
            )


def _from_this_machine(headers: Headers, client: tuple[str, int] | None) -> bool:
    if client is None or any(name in _PROXY_HEADERS for name, _ in headers):
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_loopback:
        return False
    hosts = [value.lower() for name, value in headers if name == b"host"]
    return len(hosts) == 1 and _without_port(hosts[0]) in _LOOPBACK_NAMES


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host
