"""How a worker does, by what came of the requests sent to it: circuit breaker, outlier ejection, slow start.

Heartbeats (`server.registry`) say that a process lives; this says whether it answers. What is known here is this
controller's own experience; nothing of it is shared.
"""
