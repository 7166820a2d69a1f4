"""The file of API keys: JSON Lines, one key a line, with a digest in the key's place.

    {"name": "acme", "sha256": "9f86...", "models": ["demo*"], "requests_per_minute": 60, "tokens_per_minute": 100000,
     "images_per_minute": 100, "concurrent": 8, "expires": "2030-01-01T00:00:00Z", "disabled": false,
     "tenant": "acme", "created": "2025-01-01T00:00:00Z"}

`name` and `sha256` are needed, everything else may be left out. A field that is not known is an error, since a limit
with a misspelt name would be no limit. It is changed by writing a new file beside it and renaming that.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from server.auth.api_key import ApiKey, KeyLimits
from server.auth.bearer import digest

MAX_KEYS = 100_000
MAX_BYTES = 64 * 1024 * 1024
_PREFIX = "tk-"  # so that a key that leaked is recognised for what it is
_LOCK_SECONDS = 10.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "images_per_minute", "concurrent")
_MOST = 10**12


class KeysFileError(ValueError):
    """The file cannot be read or changed; the message says where and why, in one line."""


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the file."""

    name: str
    sha256: str
    tenant: str | None = None
    models: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent: int | None = None
    expires: datetime | None = None
    disabled: bool = False
    created: datetime | None = None

    def key(self) -> ApiKey:
        return ApiKey(
            name=self.name,
            tenant=f"name:{self.tenant or self.name}",
            models=self.models,
            limits=KeyLimits(self.requests_per_minute, self.tokens_per_minute, self.images_per_minute, self.concurrent),
            expires_at=self.expires.timestamp() if self.expires is not None else None,
            disabled=self.disabled,
        )


def read_entries(path: Path) -> list[KeyEntry]:
    """Raises KeysFileError that names the file, the line and the field."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise KeysFileError(f"{path}: larger than {MAX_BYTES} bytes")
    entries: dict[str, KeyEntry] = {}
    digests: set[str] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=KeyEntry)
            _check(entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise KeysFileError(f"{path}, line {number}: {error}") from None
        if entry.name in entries:
            raise KeysFileError(f"{path}, line {number}: name: a second key called {entry.name!r}")
        if entry.sha256 in digests:
            raise KeysFileError(f"{path}, line {number}: sha256: the same key as in another line")
        entries[entry.name] = entry
        digests.add(entry.sha256)
        if len(entries) > MAX_KEYS:
            raise KeysFileError(f"{path}: more than {MAX_KEYS} keys")
    return list(entries.values())


def new_key(path: Path, name: str, **fields: object) -> str:
    """Adds a key and returns it; it stands nowhere else. `fields` are KeyEntry's. Raises KeysFileError."""
    key = _PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC).replace(microsecond=0)
    entry = KeyEntry(name=name, sha256=digest(key.encode()).hex(), created=now, **fields)  # type: ignore[arg-type]
    try:
        _check(entry)
    except ValueError as error:
        raise KeysFileError(str(error)) from None
    with _changing(path) as entries:
        if any(other.name == name for other in entries):
            raise KeysFileError(f"{path}: there is a key called {name!r}; names are not used twice")
        entries.append(entry)
    return key


def revoke_key(path: Path, name: str) -> None:
    """Disables a key; its line stays, so that its name is not given again. Raises KeysFileError."""
    with _changing(path) as entries:
        places = [place for place, entry in enumerate(entries) if entry.name == name]
        if not places:
            raise KeysFileError(f"{path}: no key called {name!r}")
        entries[places[0]] = msgspec.structs.replace(entries[places[0]], disabled=True)


@contextmanager
def _changing(path: Path) -> Iterator[list[KeyEntry]]:
    """The entries, written back as they are left. One at a time changes a file."""
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS, mode=0o600):
            entries = read_entries(path) if path.exists() else []
            yield entries
            _write(path, entries)
    except Timeout:
        raise KeysFileError(f"{path}: somebody else is changing it") from None
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror or error}") from None


def _write(path: Path, entries: list[KeyEntry]) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _check(entry: KeyEntry) -> None:
    """Raises ValueError that names the field."""
    if not _NAME.fullmatch(entry.name):
        raise ValueError("name: expected 1 to 64 letters, digits and ._-")
    if not _SHA256.fullmatch(entry.sha256):
        raise ValueError("sha256: expected the key's SHA-256 in 64 hexadecimal digits")
    if entry.tenant is not None and not _NAME.fullmatch(entry.tenant):
        raise ValueError("tenant: expected 1 to 64 letters, digits and ._-")
    if not all(0 < len(pattern) <= 256 for pattern in entry.models) or len(entry.models) > 256:
        raise ValueError("models: expected at most 256 patterns of 1 to 256 characters")
    if entry.expires is not None and entry.expires.tzinfo is None:
        raise ValueError("expires: expected a time with its zone, like 2030-01-01T00:00:00Z")
    for field in _LIMITS:
        value = getattr(entry, field)
        if value is not None and not 0 < value <= _MOST:
            raise ValueError(f"{field}: expected a positive number; leave it out for no limit")
