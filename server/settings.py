"""Every setting of the controller."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.protocol.flags import SettingsError, check, read, setting

MIB = 1024 * 1024
MOST_PROCESSES = 64
ROUTING_POLICIES = ("affinity", "least-outstanding", "power-of-two", "round-robin")


@dataclass(frozen=True)
class Settings:
    """What `python -m server` can be told. Sizes in bytes, times in seconds unless the name says otherwise."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "port to listen on; 0 takes a free one", most=65535)
    processes: int = setting(
        1,
        "controller processes on the port; they share out max-connections and max-inflight",
        least=1,
        most=MOST_PROCESSES,
    )
    redis_url: str | None = setting(
        None, "shared state, e.g. redis://host:6379/0; without it an embedded Valkey is started", secret=True
    )
    worker_secret: str | None = setting(
        None, "secret shared with the workers; needed unless the controller is alone on this machine", secret=True
    )
    api_keys: tuple[str, ...] = setting((), "comma separated keys that clients must send; none: open", secret=True)
    keys_file: str | None = setting(
        None, "file of hashed keys with their limits, made by `tephra keys`; see docs/access.md"
    )
    limits_without_redis: str = setting(
        "local", "while Redis is gone: each controller holds the limits alone, or refuses", choices=("local", "refuse")
    )
    tenant_caches: str = setting(
        "separate",
        "whether keys of different tenants may share prefix and image caches",
        choices=("separate", "shared"),
    )
    admin_key: str | None = setting(
        None, "key of /admin/*; without it only callers on this machine may read there", secret=True
    )
    routing: str = setting("affinity", "how a worker is chosen; see docs/routing.md", choices=ROUTING_POLICIES)
    affinity_load_factor: float = setting(
        1.25, "times its share of the work that a worker may have and still get what its caches know", least=1
    )
    log_level: str = setting("info", "what is logged", choices=("debug", "info", "warning", "error"))

    heartbeat_seconds: float = setting(2.0, "how often workers report")
    lease_seconds: float = setting(6.0, "a worker unheard for this long is forgotten")
    poll_seconds: float = setting(1.0, "how often the table of workers is read anew")

    max_body_bytes: int = setting(64 * MIB, "largest request body")
    body_seconds: float = setting(60.0, "most time for a request body to arrive")
    request_seconds: float = setting(1800.0, "most time for a request and its answer", least=0.001)
    max_inflight: int = setting(1024, "requests under way at once; more are answered 429")
    max_connections: int = setting(
        4096, "clients' connections open at once; one that waits gives way to a new one, else 503; 0: no bound"
    )
    max_connections_per_address: int = setting(0, "of them from one address, at each process; 0: no bound")
    max_queue: int = setting(256, "requests that may wait at each worker of a model; more: 429; 0: no bound")
    max_inflight_bytes: int = setting(2048 * MIB, "memory for request bodies and pictures under way; more: 429")
    max_image_bytes: int = setting(20 * MIB, "largest picture, encoded")
    max_image_pixels: int = setting(64_000_000, "most pixels of one picture")
    max_request_pixels: int = setting(256_000_000, "most pixels of all pictures of a request")
    max_request_image_bytes: int = setting(48 * MIB, "all pictures of a request together, encoded", least=1)

    media_schemes: str = setting("http,https,data", "how pictures may come; data alone: nothing is fetched")
    media_hosts: str = setting("*", "comma separated hosts that pictures are fetched from; *.example.org: all below it")
    media_denied_hosts: str = setting("", "comma separated hosts that pictures are never fetched from")
    media_ports: str = setting("80,443", "comma separated ports or ranges that pictures are fetched from; *: all")
    media_allow_private: bool = setting(False, "let picture URLs lead to private and loopback addresses")
    media_connect_seconds: float = setting(3.0, "most time to connect to a picture's server", least=0.001)
    media_seconds: float = setting(15.0, "most time to fetch one picture, redirects included", least=0.001)
    media_redirects: int = setting(3, "most redirects followed for one picture")
    media_concurrency: int = setting(32, "pictures fetched at once", least=1)
    media_cache_bytes: int = setting(64 * MIB, "memory for fetched pictures that may be asked about again; 0: none")
    media_cache_seconds: float = setting(60.0, "how long a fetched picture is kept at most; 0: not at all")

    connect_seconds: float = setting(2.0, "most time to connect to a worker")
    answer_seconds: float = setting(600.0, "most time until a worker's answer begins")
    stall_seconds: float = setting(120.0, "most time between two parts of a streamed answer")
    send_seconds: float = setting(60.0, "most time for a slow client to take one part of an answer")
    max_answer_bytes: int = setting(64 * MIB, "largest answer that is not streamed")
    retries: int = setting(2, "further workers tried before the first byte of an answer")
    carry_overs: int = setting(3, "times that another worker takes up a stream whose worker is lost; 0: never")
    quarantine_seconds: float = setting(
        600.0, "how long a request at which two workers were lost is refused", least=0.001
    )
    breaker_failures: int = setting(3, "failed attempts in a row after which a worker gets no requests", least=1)
    breaker_failure_rate: float = setting(0.5, "share of a worker's attempts that may fail", most=1)
    breaker_window_seconds: float = setting(30.0, "time over which a worker's failures and speed are judged")
    breaker_open_seconds: float = setting(5.0, "how long a failing worker gets none; doubled while probes fail")
    ejected_share: float = setting(0.34, "most share of a model's workers set aside as outliers; 0: none", most=1)
    slow_start_seconds: float = setting(10.0, "until a worker that joined or recovered gets its full share; 0: at once")
    shutdown_seconds: float = setting(3.0, "most time to finish answers after SIGTERM")

    def __post_init__(self) -> None:
        check(self)
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


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises SettingsError; argparse itself ends the process on unknown flags and on --help."""
    about = "The Tephra controller: one OpenAI-compatible door to many workers."
    return read(Settings, arguments, environment, prog="python -m server", about=about)
