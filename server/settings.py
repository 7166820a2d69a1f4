"""Every setting of the controller: one dataclass, from which flags and `TEPHRA_*` environment names are made.

Flags win over the environment, the environment over the defaults. Secrets are kept out of `repr`.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

MIB = 1024 * 1024
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class SettingsError(ValueError):
    """A setting cannot be used; the message names it."""


def _setting(default: Any, help: str, *, secret: bool = False, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What `python -m server` can be told. Sizes in bytes, times in seconds unless the name says otherwise."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    redis_url: str | None = _setting(
        None, "shared state, e.g. redis://host:6379/0; without it an embedded Valkey is started", secret=True
    )
    worker_secret: str | None = _setting(
        None, "secret shared with the workers; needed unless the controller is alone on this machine", secret=True
    )
    api_keys: tuple[str, ...] = _setting((), "comma separated keys that clients must send; none: open", secret=True)
    admin_key: str | None = _setting(
        None, "key of /admin/*; without it only callers on this machine may read there", secret=True
    )
    routing: str = _setting("least-outstanding", "how a worker is chosen", choices=("least-outstanding", "round-robin"))
    log_level: str = _setting("info", "what is logged", choices=("debug", "info", "warning", "error"))

    heartbeat_seconds: float = _setting(2.0, "how often workers report")
    lease_seconds: float = _setting(6.0, "a worker unheard for this long is forgotten")
    poll_seconds: float = _setting(1.0, "how often the table of workers is read anew")

    max_body_bytes: int = _setting(64 * MIB, "largest request body")
    body_seconds: float = _setting(60.0, "most time for a request body to arrive")
    max_inflight: int = _setting(1024, "requests under way at once; more are answered 429")
    max_inflight_bytes: int = _setting(2048 * MIB, "memory for request bodies and pictures under way; more: 429")
    max_image_bytes: int = _setting(20 * MIB, "largest picture, encoded")
    max_image_pixels: int = _setting(64_000_000, "most pixels of one picture")
    max_request_pixels: int = _setting(256_000_000, "most pixels of all pictures of a request")

    media_allow_private: bool = _setting(False, "let picture URLs lead to private and loopback addresses")
    media_connect_seconds: float = _setting(3.0, "most time to connect to a picture's server")
    media_seconds: float = _setting(15.0, "most time to fetch one picture, redirects included")
    media_redirects: int = _setting(3, "most redirects followed for one picture")
    media_concurrency: int = _setting(32, "pictures fetched at once")

    connect_seconds: float = _setting(2.0, "most time to connect to a worker")
    answer_seconds: float = _setting(600.0, "most time until a worker's answer begins")
    stall_seconds: float = _setting(120.0, "most time between two parts of a streamed answer")
    send_seconds: float = _setting(60.0, "most time for a slow client to take one part of an answer")
    max_answer_bytes: int = _setting(64 * MIB, "largest answer that is not streamed")
    retries: int = _setting(2, "further workers tried before the first byte of an answer")
    set_aside_seconds: float = _setting(5.0, "how long a worker that could not be reached is passed over")
    shutdown_seconds: float = _setting(3.0, "most time to finish answers after SIGTERM")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            choices = item.metadata["choices"]
            if choices and value not in choices:
                raise SettingsError(f"{flag(item.name)}: expected one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
                raise SettingsError(f"{flag(item.name)}: must not be negative, got {value}")
        if self.port > 65535:
            raise SettingsError(f"--port: {self.port} is no port")
        if not self.lease_seconds > self.heartbeat_seconds > 0:
            raise SettingsError("--lease-seconds must be longer than --heartbeat-seconds, and both above 0")
        if self.poll_seconds <= 0:
            raise SettingsError("--poll-seconds must be above 0")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the controller."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    return "TEPHRA_" + name.upper()


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises SettingsError; argparse itself ends the process on unknown flags and on --help."""
    parser = argparse.ArgumentParser(
        prog="python -m server", description="The Tephra controller: one OpenAI-compatible door to many workers."
    )
    defaults = Settings()
    for item in fields(Settings):
        default = getattr(defaults, item.name)
        shown = "" if default in (None, ()) else f"; default {default}"
        text = f"{item.metadata['help']} [{environment_name(item.name)}{shown}]".replace("%", "%%")
        if isinstance(default, bool):
            parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            metavar = item.name.rsplit("_", 1)[-1].upper()
            parser.add_argument(flag(item.name), default=None, help=text, metavar=metavar)
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for item in fields(Settings):
        raw = given[item.name] if given[item.name] is not None else environment.get(environment_name(item.name))
        if raw is not None:
            values[item.name] = _convert(item.name, raw, getattr(defaults, item.name))
    return Settings(**values)


def _convert(name: str, raw: str | bool, default: Any) -> Any:
    """`raw` in the type of the setting's default. Raises SettingsError, without the value: it may be a secret."""
    if isinstance(raw, bool):
        return raw
    try:
        if isinstance(default, bool):
            return _TRUTH[raw.lower()]
        if isinstance(default, int):
            return int(raw)
        if isinstance(default, float):
            number = float(raw)
            if number != number or number == float("inf"):
                raise ValueError
            return number
    except (KeyError, ValueError):
        kind = {bool: "yes or no", int: "a whole number", float: "a number"}[type(default)]
        raise SettingsError(f"{flag(name)} ({environment_name(name)}): expected {kind}") from None
    if isinstance(default, tuple):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw or None if default is None else raw
