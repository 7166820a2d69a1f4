"""How many tokens a row becomes, exactly as the trainer lays it out: tokenizer, chat template, image arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.configuration import read_config
from model.errors import ModelError
from model.generations import GENERATIONS
from model.prompts import Prompter, load_prompter
from model.prompts.templates import TEMPLATES
from training.data.batches import flat_length
from training.data.check.presets import PRESETS
from training.data.conversations import Conversation, message_of, questions
from training.data.errors import DataError

Size = tuple[int, int]  # width, height


class TokenCounter:
    """Counts with a checkpoint's tokenizer; with a preset, by that stage's geometry and template."""

    def __init__(self, model: Path, preset: str | None) -> None:
        """Raises DataError."""
        if preset is not None and preset not in PRESETS:
            raise DataError(f"preset {preset}: expected one of {', '.join(PRESETS)}")
        try:
            config = read_config(model)
            self._prompter: Prompter = load_prompter(model, config)
            self._geometry = config.geometry
            if preset is not None:
                chosen = PRESETS[preset]
                self._geometry = GENERATIONS[chosen.generation].config.geometry
                if chosen.base_view:
                    self._geometry = replace(self._geometry, canvases=())
                self._prompter = self._prompter.with_template(TEMPLATES[chosen.template])
        except ModelError as error:
            raise DataError(str(error)) from error
        self.max_tokens = PRESETS[preset].max_tokens if preset else config.text.context_length

    def count(self, row: dict[str, Any], sizes: Sequence[Size]) -> int:
        """Tokens of a row of sound shape whose images have these sizes. Raises DataError."""
        messages = tuple(message_of(turn, "row") for turn in row["conversations"])
        independent = row.get("turns") == "independent"
        image = Path("image") if sizes else None
        talks = questions(Conversation("", image, messages, independent)) if independent else [messages]
        layouts = [self._geometry.layout(width, height, len(sizes)) for width, height in sizes]
        try:
            return flat_length([self._prompter.build_labelled(talk, layouts) for talk in talks])
        except ModelError as error:
            raise DataError(str(error)) from error
