"""Turns token ids and image tensors into tokens. The engine knows nothing of text, HTTP or controllers."""
