"""What health is judged by. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from server.settings import Settings


@dataclass(frozen=True)
class HealthRules:
    """`from_settings` makes it; the numbers that are no settings stand here alone."""

    failures_in_a_row: int = 3  # that open the breaker
    failure_rate: float = 0.5  # of the attempts in the window, that opens it too
    least_attempts: int = 10  # in the window, before their rate or their times mean anything
    window_seconds: float = 30.0
    open_seconds: float = 5.0  # until the first probe; doubled with every probe that fails
    most_open_seconds: float = 60.0
    slow_start_seconds: float = 10.0  # from the first request after joining or recovering to a full share; 0: none
    ejected_share: float = 0.34  # of a model's workers, that may be out of use when one is to be ejected as an outlier
    outlier_failure_rate: float = 0.2  # above that of its peers
    outlier_slowness: float = 4.0  # times its peers' median time to the first token
    outlier_seconds: float = 1.0  # above it, at the least

    @classmethod
    def from_settings(cls, settings: Settings) -> HealthRules:
        return cls(
            failures_in_a_row=settings.breaker_failures,
            failure_rate=settings.breaker_failure_rate,
            window_seconds=settings.breaker_window_seconds,
            open_seconds=settings.breaker_open_seconds,
            most_open_seconds=max(cls.most_open_seconds, settings.breaker_open_seconds),
            slow_start_seconds=settings.slow_start_seconds,
            ejected_share=settings.ejected_share,
        )
