"""Which workers there are: a table in Redis under leases, and each controller's local copy of it."""
