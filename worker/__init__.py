"""Holds one model on one device and answers requests: engine, OpenAI-compatible HTTP API, registration."""
