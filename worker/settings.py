"""Every setting of a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from server.protocol.flags import SettingsError, check, flag, read, setting

MIB = 2**20


class StartError(Exception):
    """The worker cannot start; the message is one line that says what to do."""


@dataclass(frozen=True)
class WorkerSettings:
    """What `python -m worker` can be told. Sizes in bytes, times in seconds."""

    model: str | None = setting(None, "checkpoint directory in Hugging Face layout")
    served_name: str | None = setting(None, "model name that clients send; default: the directory's name")
    version_id: str | None = setting(None, "version that answers report; default: manifest.json's, else a digest")
    chat_template: str | None = setting(
        None, "prompt format to serve with, by name (v1, qwen_1_5, ...) or a Jinja file; default: the checkpoint's"
    )
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8100, "port to listen on; 0 takes a free one", most=65535)

    controller_url: str | None = setting(
        None,
        "controller to join, e.g. http://127.0.0.1:8000; several, comma separated, where they share a Redis; none: "
        "serve alone",
        short="--controller",
    )
    worker_secret: str | None = setting(None, "secret shared with the controller", secret=True, short="--secret")
    worker_id: str | None = setting(None, "name in the registry; default: host name and a random part")
    worker_url: str | None = setting(None, "URL at which the controller reaches this worker; default: found out")
    api_keys: tuple[str, ...] = setting((), "comma separated keys that clients must send; none: open", secret=True)

    engine: str = setting("auto", "what computes the answers", choices=("auto", "native"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = setting(
        "auto",
        "of the weights; auto: bfloat16 on CUDA and on CPUs that multiply it natively, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = setting(
        "none", "int8: weights and activations in int8, on CPUs: faster, less exact", choices=("none", "int8")
    )
    max_running: int = setting(32, "answers decoded at once", least=1)
    max_waiting: int = setting(256, "answers that may wait for their first step; more are answered 429", least=1)
    max_step_tokens: int = setting(512, "tokens of one engine step; a prompt's end may add a quarter", least=1)
    max_step_tiles: int = setting(4, "image tiles encoded in one step; a larger image takes several", least=1)
    block_size: int = setting(16, "tokens of one KV block", least=1)
    kv_cache_bytes: int | None = setting(
        None, "memory of the KV cache; default: a quarter of what is free, at most 2 GiB", kind=int, least=1
    )
    context_length: int | None = setting(
        None, "most tokens of prompt and answer; default: the checkpoint's", kind=int, least=1
    )
    prefix_cache: bool = setting(True, "take up KV blocks whose tokens and images were computed before")
    feature_cache_bytes: int = setting(512 * MIB, "memory for image features that no running answer needs; 0: none")
    check_blocks: bool = setting(False, "check the books of KV blocks and features after every step; an error stops it")
    cuda_graphs: bool = setting(True, "on a GPU, record decode steps as CUDA graphs at start")
    threads: int | None = setting(None, "threads of torch; default: torch's choice", kind=int, least=1)

    max_requests: int = setting(512, "requests under way at once; more are answered 429", least=1)
    max_images_held: int = setting(512, "images of all requests under way; more are answered 429", least=1)
    max_body_bytes: int = setting(64 * MIB, "largest request body", least=1)
    body_seconds: float = setting(60.0, "most time for a request body to arrive", least=0.001)
    send_seconds: float = setting(60.0, "most time for a slow client to take one part of an answer", least=0.001)
    request_seconds: float = setting(1800.0, "most time for an answer", least=0.001)
    default_max_tokens: int = setting(4096, "longest chat answer where the request sets no limit", least=1)
    max_images: int = setting(16, "images in one request")
    max_image_bytes: int = setting(20 * MIB, "largest image file", least=1)
    max_image_pixels: int = setting(64_000_000, "most pixels of one image", least=1)
    max_request_pixels: int = setting(256_000_000, "most pixels of all images of a request", least=1)
    image_cache_bytes: int = setting(128 * MIB, "memory for decoded images that may be asked about again; 0: none")
    image_threads: int = setting(2, "threads that decode images and tokenize", least=1)
    max_grammar_bytes: int = setting(65_536, "largest schema, expression, grammar or set of tools, in bytes", least=1)
    grammar_seconds: float = setting(5.0, "most time to compile a schema, expression or grammar", least=0.001)
    grammar_step_seconds: float = setting(2.0, "most time to find what can come next in such an answer", least=0.001)
    grammar_cache: int = setting(64, "compiled schemas, expressions and grammars that are kept")
    grammar_waiting: int = setting(32, "schemas and the like that may wait to be compiled; more: 429", least=1)
    grammar_threads: int = setting(2, "threads that find what can come next in answers of a given form", least=1)
    media_schemes: str = setting("http,https,data", "how images may come where the worker fetches them itself")
    media_hosts: str = setting("*", "comma separated hosts that images are fetched from; *.example.org: all below it")
    media_denied_hosts: str = setting("", "comma separated hosts that images are never fetched from")
    media_ports: str = setting("80,443", "comma separated ports or ranges that images are fetched from; *: all")
    media_allow_private: bool = setting(False, "let image URLs lead to private and loopback addresses")
    media_connect_seconds: float = setting(3.0, "most time to connect to an image's server", least=0.001)
    media_seconds: float = setting(15.0, "most time to fetch one image, redirects included", least=0.001)
    media_redirects: int = setting(3, "most redirects followed for one image")
    media_concurrency: int = setting(16, "images fetched at once", least=1)

    drain_seconds: float = setting(30.0, "most time to finish answers after SIGTERM")
    log_level: str = setting("info", "what is logged", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        check(self)
        if not self.model:
            raise SettingsError("--model (TEPHRA_MODEL): a checkpoint directory is needed")
        for name, urls in (("controller_url", self.controllers), ("worker_url", (self.worker_url,))):
            for url in filter(None, urls):
                if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                    raise SettingsError(f"{flag(name)}: expected a URL like http://host:8000")

    @property
    def controllers(self) -> tuple[str, ...]:
        """Where the worker joins: at the first that answers. Empty: it serves alone."""
        return tuple(url for part in (self.controller_url or "").split(",") if (url := part.strip()))


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> WorkerSettings:
    """Raises SettingsError; argparse itself ends the process on unknown flags and on --help."""
    about = "A Tephra worker: one model behind an OpenAI-compatible API."
    return read(WorkerSettings, arguments, environment, prog="python -m worker", about=about)
