"""Builds data, trains the stages of the LLaVA recipes, evaluates, publishes. Stands on `model` alone."""
