"""What a key may use a minute and at once: token buckets and leases in Redis that hold across controllers."""
