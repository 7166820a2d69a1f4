"""What is measured rather than asserted: load on any OpenAI-compatible server, engines side by side, loading."""
