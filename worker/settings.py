"""Every setting of a worker: one dataclass, from which flags and `TEPHRA_*` environment names are made.

Flags win over the environment, the environment over the defaults. Secrets are kept out of `repr`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

MIB = 2**20
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_OPTIONAL_INTEGERS = frozenset({"kv_cache_bytes", "context_length", "threads"})


class SettingsError(ValueError):
    """A setting cannot be used; the message names it, never its value where that may be a secret."""


class StartError(Exception):
    """The worker cannot start; the message is one line that says what to do."""


def _setting(default: Any, help: str, *, secret: bool = False, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class WorkerSettings:
    """What `python -m worker` can be told. Sizes in bytes, times in seconds."""

    model: str | None = _setting(None, "checkpoint directory in Hugging Face layout")
    served_name: str | None = _setting(None, "model name that clients send; default: the directory's name")
    version_id: str | None = _setting(None, "version that answers report; default: manifest.json's, else a digest")
    chat_template: str | None = _setting(
        None, "prompt format to serve with, by name (v1, qwen_1_5, ...) or a Jinja file; default: the checkpoint's"
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8100, "port to listen on; 0 takes a free one")

    controller_url: str | None = _setting(None, "controller to join, e.g. http://127.0.0.1:8000; none: serve alone")
    worker_secret: str | None = _setting(None, "secret shared with the controller", secret=True)
    worker_id: str | None = _setting(None, "name in the registry; default: host name and a random part")
    worker_url: str | None = _setting(None, "URL at which the controller reaches this worker; default: found out")
    api_keys: tuple[str, ...] = _setting((), "comma separated keys that clients must send; none: open", secret=True)

    engine: str = _setting("auto", "what computes the answers", choices=("auto", "native"))
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _setting(
        "auto",
        "of the weights; auto: bfloat16 on CUDA and on CPUs that multiply it natively, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_running: int = _setting(32, "answers decoded at once")
    max_waiting: int = _setting(256, "answers that may wait for their first step; more are answered 429")
    max_step_tokens: int = _setting(512, "tokens of one engine step")
    max_step_tiles: int = _setting(4, "image tiles encoded before one step")
    block_size: int = _setting(16, "tokens of one KV block")
    kv_cache_bytes: int | None = _setting(
        None, "memory of the KV cache; default: a quarter of what is free, at most 2 GiB"
    )
    context_length: int | None = _setting(None, "most tokens of prompt and answer; default: the checkpoint's")
    threads: int | None = _setting(None, "threads of torch; default: torch's choice")

    max_requests: int = _setting(512, "requests under way at once; more are answered 429")
    max_images_held: int = _setting(512, "images of all requests under way; more are answered 429")
    max_body_bytes: int = _setting(64 * MIB, "largest request body")
    body_seconds: float = _setting(60.0, "most time for a request body to arrive")
    send_seconds: float = _setting(60.0, "most time for a slow client to take one part of an answer")
    request_seconds: float = _setting(1800.0, "most time for an answer")
    default_max_tokens: int = _setting(4096, "longest chat answer where the request sets no limit")
    max_images: int = _setting(16, "images in one request")
    max_image_bytes: int = _setting(20 * MIB, "largest image file")
    max_image_pixels: int = _setting(64_000_000, "most pixels of one image")
    max_request_pixels: int = _setting(256_000_000, "most pixels of all images of a request")
    image_threads: int = _setting(2, "threads that decode images and tokenize")
    media_allow_private: bool = _setting(False, "let image URLs lead to private and loopback addresses")
    media_connect_seconds: float = _setting(3.0, "most time to connect to an image's server")
    media_seconds: float = _setting(15.0, "most time to fetch one image, redirects included")
    media_redirects: int = _setting(3, "most redirects followed for one image")
    media_concurrency: int = _setting(16, "images fetched at once")

    drain_seconds: float = _setting(30.0, "most time to finish answers after SIGTERM")
    log_level: str = _setting("info", "what is logged", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            choices = item.metadata["choices"]
            if choices and value not in choices:
                raise SettingsError(f"{flag(item.name)}: expected one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                least = 0 if item.name in ("port", "drain_seconds", "max_images", "media_redirects") else 1e-3
                if value < least:
                    raise SettingsError(f"{flag(item.name)}: {value} is too small")
        if not self.model:
            raise SettingsError("--model (TEPHRA_MODEL): a checkpoint directory is needed")
        if self.port > 65535:
            raise SettingsError(f"--port: {self.port} is no port")
        for name in ("controller_url", "worker_url"):
            url = getattr(self, name)
            if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
                raise SettingsError(f"{flag(name)}: expected a URL like http://host:8000")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    return "TEPHRA_" + name.upper()


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> WorkerSettings:
    """Raises SettingsError; argparse itself ends the process on unknown flags and on --help."""
    given = vars(_parser().parse_args(arguments))
    values: dict[str, Any] = {}
    for item in fields(WorkerSettings):
        raw = given[item.name] if given[item.name] is not None else environment.get(environment_name(item.name))
        if raw is not None:
            values[item.name] = _convert(item.name, raw, item.default)
    return WorkerSettings(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="A Tephra worker: one model behind an OpenAI-compatible API."
    )
    for item in fields(WorkerSettings):
        shown = "" if item.default in (None, ()) else f"; default {item.default}"
        text = f"{item.metadata['help']} [{environment_name(item.name)}{shown}]".replace("%", "%%")
        if isinstance(item.default, bool):
            parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            names = [flag(item.name), *_SHORTER.get(item.name, ())]
            parser.add_argument(
                *names, dest=item.name, default=None, help=text, metavar=item.name.rpartition("_")[2].upper()
            )
    return parser


# What people type; the environment has the long names only.
_SHORTER = {"controller_url": ("--controller",), "worker_secret": ("--secret",)}


def _convert(name: str, raw: str | bool, default: Any) -> Any:
    """`raw` in the type of the setting. Raises SettingsError."""
    if isinstance(raw, bool):
        return raw
    try:
        if isinstance(default, bool):
            return _TRUTH[raw.lower()]
        if isinstance(default, int) or (name in _OPTIONAL_INTEGERS and raw):
            return int(raw)
        if isinstance(default, float):
            number = float(raw)
            if not 0 <= number < float("inf"):
                raise ValueError
            return number
    except (KeyError, ValueError):
        kind = (
            "yes or no" if isinstance(default, bool) else "a number" if isinstance(default, float) else "a whole number"
        )
        raise SettingsError(f"{flag(name)} ({environment_name(name)}): expected {kind}") from None
    if isinstance(default, tuple):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw or default
