"""How a controller speaks to Redis: with patience that ends, a bound on connections, and one more try where a pooled
connection had gone stale. What is kept there is the business of those who keep it."""

from __future__ import annotations

import logging

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.logs import log

RedisErrors = (
    RedisError,
    OSError,
)  # what every command may raise when Redis cannot be reached; OSError has TimeoutError


def connect(redis_url: str, *, patience: float, connections: int) -> redis.asyncio.Redis:
    """Connects with the first command. ValueError if `redis_url` is no URL.

    `patience`: seconds for one answer, for connecting, and for a free connection among the `connections`.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        redis_url,
        max_connections=connections,
        timeout=patience,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        retry=Retry(NoBackoff(), 1),
    )
    return redis.asyncio.Redis.from_pool(pool)


async def close(client: redis.asyncio.Redis, of: str) -> None:
    """`of`: whose connections they are, for the log."""
    try:
        await client.aclose()
    except RedisErrors as error:
        log(logging.WARNING, "connections to Redis not closed cleanly", of=of, reason=type(error).__name__)
