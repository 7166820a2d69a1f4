"""The controller: auth, safe media, routing, relay, registry, metrics, pages. Never imports torch."""
