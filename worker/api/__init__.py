"""The worker's HTTP API, OpenAI-compatible by itself. Knows requests and responses, nothing of tensors."""
