"""The controller's rooms, made once and joined: what the routes work with.

No HTTP here. `start` needs a reachable Redis; from then on nothing here depends on it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.admission import Room
from server.auth import AdminAuth, ClientAuth, WorkerAuth
from server.auth.keys_file import KeysFileError
from server.health.rules import HealthRules
from server.limits.limiter import Limiter
from server.media.fetch import ImageFetcher, Resolve, resolve_by_system
from server.media.images import ImageResolver
from server.media.shared_fetches import SharedFetches
from server.metrics import Metrics
from server.protocol.flags import SettingsError
from server.quarantine import Quarantine
from server.registry.membership import Membership
from server.registry.store import RegistryStore, StoreErrors
from server.registry.table import WorkerTable
from server.relay import Relay
from server.routing.policies import make_policy
from server.routing.router import Router
from server.settings import Settings
from server.siblings import Seating, Siblings
from server.snapshot import Snapshot, take_snapshot
from server.state import StateError
from server.stats import Stats
from server.watch import Watches

_MEDIA_THREADS = 2  # header reading is short; more would only contend with the event loop


class Controller:
    def __init__(
        self, settings: Settings, resolve: Resolve = resolve_by_system, seating: Seating | None = None
    ) -> None:
        """`settings.redis_url` must be set; SettingsError if it is no URL. `resolve` looks up hosts of picture URLs.
        `seating`: of one of several processes."""
        if not settings.redis_url:
            raise SettingsError("--redis-url: the controller needs shared state")
        self.settings = settings
        self.metrics = Metrics()
        self.stats = Stats()
        # Every controller has read the table anew by then, and every worker has reported again.
        settle_seconds = 2 * settings.poll_seconds + settings.heartbeat_seconds
        self.table = WorkerTable(self.metrics, HealthRules.from_settings(settings), settle_seconds)
        try:
            self.store = RegistryStore(settings.redis_url, settings.lease_seconds)
            self.limiter = Limiter(settings, self.metrics)
            self.quarantine = Quarantine(
                settings.redis_url, settings.quarantine_seconds, settings.poll_seconds, self.metrics
            )
        except ValueError as error:
            raise SettingsError(f"--redis-url (TEPHRA_REDIS_URL): {error}") from None
        self.membership = Membership(settings, self.table, self.store, self.metrics)
        self.pool = ThreadPoolExecutor(_MEDIA_THREADS, thread_name_prefix="media")
        fetcher = ImageFetcher(settings, self.metrics, resolve, keep_seconds=settings.media_cache_seconds)
        fetches = SharedFetches(fetcher, settings.media_cache_bytes, self.metrics)
        self.images = ImageResolver(settings, fetches, self.pool, self.metrics)
        self.room = Room(settings, self.metrics)
        self.watches = Watches()
        router = Router(self.table, make_policy(settings), self.metrics)
        self.relay = Relay(settings, router, self.metrics, self.stats, settings.worker_secret, self.quarantine)
        self.client_auth = _client_auth(settings, self.metrics)
        self.worker_auth = WorkerAuth(settings.worker_secret)
        self.admin_auth = AdminAuth(settings.admin_key)
        self.stopping = False
        self._seating = seating or Seating(0, 1)
        self._siblings = Siblings(seating, self._snapshot) if seating is not None else None

    async def start(self) -> None:
        """Raises StateError when Redis cannot be reached."""
        try:
            await self.membership.start()
        except StoreErrors as error:
            raise StateError(f"Redis cannot be reached: {type(error).__name__}; check TEPHRA_REDIS_URL") from error
        await self.limiter.start()
        await self.client_auth.start()
        await self.relay.start()
        if self._siblings is not None:
            await self._siblings.start()

    async def stop(self) -> None:
        if self._siblings is not None:
            await self._siblings.stop()
        await self.relay.stop()
        await self.client_auth.stop()
        await self.limiter.stop()
        await self.membership.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def survey(self, window: int) -> tuple[list[Snapshot], list[int]]:
        """What all processes of this controller know of requests in the last `window` seconds, and the places of those
        that could not be asked."""
        own = self._snapshot(window)
        if self._siblings is None:
            return [own], []
        others, missing = await self._siblings.ask(window)
        return [own, *others], missing

    def _snapshot(self, window: int) -> Snapshot:
        return take_snapshot(
            self.stats,
            self.table,
            place=self._seating.place,
            processes=self._seating.count,
            in_flight=self.room.requests,
            window=window,
        )


def _client_auth(settings: Settings, metrics: Metrics) -> ClientAuth:
    """Raises SettingsError when the file of keys cannot be read."""
    file = Path(settings.keys_file).expanduser() if settings.keys_file else None
    try:
        return ClientAuth(settings.api_keys, file, metrics, share_caches=settings.tenant_caches == "shared")
    except KeysFileError as error:
        raise SettingsError(f"--keys-file (TEPHRA_KEYS_FILE): {error}") from None
