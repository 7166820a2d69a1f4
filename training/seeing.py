"""The demo's first stages, on single views of scenes whose every patch is known by construction.

`see`: the vision tower learns to tell what each patch shows, through a linear layer that is thrown away. The base tower
was made for saliency; this teaches it kinds, shapes and letters at a twentieth of what it costs through the language
model. `name`: the connector learns to give each patch the word embedding of what it shows, so that the language model
meets image tokens that it can already read; the language model itself never runs.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset

from model.checkpoint.files import read_json
from model.checkpoint.load import load_model
from model.config import LlavaConfig
from model.image_file import decode_rgb
from model.images import ImagePreprocessor, read_preprocessor
from model.llava import LlavaModel
from model.prompts import Prompter, load_prompter
from training.data.batches import LengthGroupedSampler
from training.data.conversations import DataError
from training.parts import TrainedPart, carry_over, describe, load_parts, prepare_parts, save_parts
from training.progress import StepLog, TrainingProgress
from training.recipes.recipe import SeeingRecipe
from training.scenes.patches import IGNORED, MARKS, PatchClasses, cut, random_view, stack
from training.schedule import cosine_with_warmup

_MARK_SHARE = 0.5  # weight of the marks beside the names


class PatchReader(nn.Module):
    """Vision tower and linear layers as a loss: what does each patch show, and how is it marked?"""

    def __init__(self, model: LlavaModel, classes: int) -> None:
        super().__init__()
        width = model.config.vision.hidden_size
        self.tower = model.vision_tower
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.mark_head = nn.Linear(width, len(MARKS))
        # Most patches bear no mark.
        self.register_buffer("mark_weights", torch.tensor([0.25] + [1.0] * (len(MARKS) - 1)), persistent=False)
        self.mark_weights: torch.Tensor

    def forward(
        self, pixels: torch.Tensor, labels: torch.Tensor, marks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, S, S], labels and marks [B, patches] -> mean loss, share of patches named rightly.

        The background and patches of which nothing is known are left out of the share.
        """
        features = self.norm(self.tower(pixels).float())
        scores = self.head(features).float()  # [B, patches, classes]
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        marked = F.cross_entropy(self.mark_head(features).float().flatten(0, 1), marks.flatten(), self.mark_weights)
        return loss + _MARK_SHARE * marked, _share_right(scores, labels)


class PatchNamer(nn.Module):
    """Vision tower and connector as a loss: how far is each patch from the embedding of what it shows?"""

    def __init__(self, model: LlavaModel, names: list[str], prompter: Prompter) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.connector = model.multi_modal_projector
        self.register_buffer("words", _embed(model, prompter, [_spoken(name) for name in names]), persistent=False)
        marks = _embed(model, prompter, [f" {mark}" for mark in MARKS])
        marks[0] = 0
        self.register_buffer("marks", marks, persistent=False)
        self.words: torch.Tensor  # [classes, D]
        self.marks: torch.Tensor  # [marks, D]

    @torch.no_grad()
    def start(self, pixels: torch.Tensor) -> None:
        """Draws the connector anew, so that its hidden units see standardised features and it speaks at words' size."""
        features = self.tower(pixels).float().flatten(0, 1)
        spread, centre = features.std(0), features.mean(0)
        first, second = self.connector.linear_1, self.connector.linear_2
        first.weight.normal_(std=features.shape[1] ** -0.5).div_(spread)
        first.bias.copy_(-first.weight @ centre)
        second.weight.normal_(std=second.in_features**-0.5 * float(self.words.std()))
        second.bias.copy_(self.words.mean(0))

    def forward(
        self, pixels: torch.Tensor, labels: torch.Tensor, marks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As PatchReader; the loss is the squared distance relative to the spread of the words.

        A mark's word is added to that of what the patch shows.
        """
        with torch.no_grad():
            features = self.tower(pixels)
        given = self.connector(features).float().flatten(0, 1)  # [B * patches, D]
        labels, marks = labels.flatten(), marks.flatten()
        known = labels != IGNORED
        wanted = self.words[labels.clamp(min=0)] + self.marks[marks]
        loss = F.mse_loss(given[known], wanted[known]) / self.words.var(0).mean()
        unmarked = given.detach() - self.marks[marks]
        return loss, _share_right(-torch.cdist(unmarked, self.words), labels)


@torch.no_grad()
def _embed(model: LlavaModel, prompter: Prompter, words: list[str]) -> torch.Tensor:
    """[len(words), D] float32: the mean of the embeddings of each word's tokens."""
    ids = [prompter.tokenizer.encode(word, add_special_tokens=False) for word in words]
    return torch.stack([model.language_model.embed(torch.tensor(part)).float().mean(0) for part in ids])


def _spoken(name: str) -> str:
    """The text whose embedding stands for a class."""
    return name.removeprefix("letter ") if name.startswith("letter ") else f" {name}"


def _share_right(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    shown = labels > 0
    right = (scores.argmax(-1) == labels)[shown].float().mean() if shown.any() else scores.new_zeros(())
    return right.detach()


LabelledView = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ViewSet(Dataset[LabelledView]):
    """Views of scenes with labels and marks of their patches; view i of epoch e is a function of (seed, e, i)."""

    def __init__(self, data: Path, recipe: SeeingRecipe, preprocessor: ImagePreprocessor) -> None:
        file = data / recipe.data.file
        try:
            self._rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
            self.classes = PatchClasses(self._rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not a data set of scenes with their objects ({error})") from error
        self._folder = data / recipe.data.images
        self._preprocessor = preprocessor
        self._seed = recipe.seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int) -> LabelledView:
        epoch, index = divmod(key, len(self._rows))
        row: Mapping[str, Any] = self._rows[index]
        image = decode_rgb((self._folder / row["image"]).read_bytes())
        view = random_view(*image.size, random.Random(f"{self._seed}:{epoch}:{index}"))
        geometry = self._preprocessor.geometry
        pixels = stack([cut(image, view, geometry.tile)], self._preprocessor.mean, self._preprocessor.std)[0]
        return pixels, *self.classes.labels(row, view, geometry.grid)


class SeeingTrainer:
    """Runs one SeeingRecipe."""

    def __init__(
        self, recipe: SeeingRecipe, base: Path, data: Path, output: Path, init_from: Path | None, *, loader_workers: int
    ) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._output, self._init_from, self._workers = recipe, output, init_from, loader_workers
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._console = Console(stderr=True, quiet=not self._accelerator.is_main_process)
        config = LlavaConfig.from_hf(read_json(base / "config.json"))
        shallow = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=1))  # it never runs
        self._model = load_model(base, shallow, self._accelerator.device, torch.bfloat16)
        self._parts = prepare_parts(self._model, recipe.parts)
        if init_from is not None:
            load_parts(self._model, recipe.parts, init_from)
        self._views = ViewSet(data, recipe, read_preprocessor(base, config))
        self._objective = self._make_objective(load_prompter(base, config)).to(self._accelerator.device)
        self._console.print(describe(self._parts))

    def run(self) -> None:
        """Trains to the end and writes the trained parts and summary.json."""
        recipe, accelerator = self._recipe, self._accelerator
        optimizer = torch.optim.AdamW(self._groups(), weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        trainable = [parameter for parameter in self._objective.parameters() if parameter.requires_grad]
        objective = accelerator.prepare(self._objective)
        batches = self._batches()
        started, log = time.monotonic(), StepLog(self._output / "log.jsonl", accelerator.is_main_process)
        with TrainingProgress(self._console, recipe.name, len(batches)) as progress:
            for step, batch in enumerate(batches):
                factor = cosine_with_warmup(step, len(batches), recipe.warmup)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                with torch.autocast(accelerator.device.type, torch.bfloat16):
                    loss, right = objective(*(part.to(accelerator.device) for part in batch))
                accelerator.backward(loss)
                norm = float(torch.nn.utils.clip_grad_norm_(trainable, recipe.clip))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                told = {"step": step, "loss": loss.item(), "norm": norm, "rate": factor, "right": right.item()}
                log.write(told, tokens=batch[1].numel())
                progress.advance(loss.item(), batch[1].numel() * accelerator.num_processes)
        if accelerator.is_main_process:
            carry_over(self._init_from, self._output)
            save_parts(self._model, recipe.parts, self._output)
            log.summarise(self._output / "summary.json", recipe.name, time.monotonic() - started)

    def _make_objective(self, prompter: Prompter) -> nn.Module:
        if "vision_tower" in self._recipe.parts:
            return PatchReader(self._model, len(self._views.classes))
        namer = PatchNamer(self._model, self._views.classes.names, prompter)
        namer.start(torch.stack([self._views[index][0] for index in range(min(len(self._views), self._recipe.batch))]))
        return namer

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [_group(part) for part in self._parts]
        if isinstance(self._objective, PatchReader):
            heads = (self._objective.norm, self._objective.head, self._objective.mark_head)
            groups.append(
                {"params": [each for head in heads for each in head.parameters()], "lr": self._recipe.head_rate}
            )
        return groups

    def _batches(self) -> DataLoader[Any]:
        recipe, accelerator = self._recipe, self._accelerator
        per_epoch = len(self._views) // recipe.batch
        steps = max(1, int(per_epoch * recipe.epochs))
        sampler = LengthGroupedSampler(
            [0] * len(self._views),
            recipe.batch,
            seed=recipe.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        order: list[list[int]] = []
        for epoch in range(-(-steps // per_epoch)):
            sampler.set_epoch(epoch)
            order += [[epoch * len(self._views) + index for index in batch] for batch in sampler]
        return DataLoader(self._views, batch_sampler=order[:steps], num_workers=self._workers)


def _group(part: TrainedPart) -> dict[str, Any]:
    return {"params": part.parameters, "lr": part.plan.learning_rate}
