"""Evaluation of a served model through its OpenAI-compatible API. Start at `demo.evaluate_demo`."""

from training.evaluation.demo import EvaluationError, evaluate_demo
from training.evaluation.result import DemoEvaluation, FamilyResult, Tally

__all__ = ["DemoEvaluation", "EvaluationError", "FamilyResult", "Tally", "evaluate_demo"]
