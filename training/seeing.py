"""The demo's stage 0: its vision tower learns to see scenes, patch by patch.

The base tower was made for saliency; a linear layer that must name what each patch shows teaches it kinds, shapes and
letters at a twentieth of the cost of learning them through the language model. The linear layer is thrown away.
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
from training.data.batches import LengthGroupedSampler
from training.data.conversations import DataError
from training.parts import describe, prepare_parts, save_parts
from training.progress import StepLog, TrainingProgress
from training.recipes.recipe import SeeingRecipe
from training.scenes.patches import PatchClasses, cut, random_view, stack
from training.schedule import cosine_with_warmup


class PatchReader(nn.Module):
    """Vision tower and linear layer as a loss."""

    def __init__(self, tower: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, S, S], labels [B, patches] -> mean loss, share of patches named rightly (background apart)."""
        scores = self.head(self.norm(self.tower(pixels).float()))  # [B, patches, classes]
        loss = F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten())
        shown = labels > 0
        right = (scores.argmax(-1) == labels)[shown].float().mean() if shown.any() else loss.new_zeros(())
        return loss, right.detach()


class ViewSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Views of scenes with their patch labels; the view of row i in epoch e is a function of (seed, e, i)."""

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

    def __getitem__(self, key: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = divmod(key, len(self._rows))
        row: Mapping[str, Any] = self._rows[index]
        image = decode_rgb((self._folder / row["image"]).read_bytes())
        view = random_view(*image.size, random.Random(f"{self._seed}:{epoch}:{index}"))  # noqa: S311
        geometry = self._preprocessor.geometry
        pixels = stack([cut(image, view, geometry.tile)], self._preprocessor.mean, self._preprocessor.std)[0]
        return pixels, self.classes.labels(row, view, geometry.grid)


def train_to_see(recipe: SeeingRecipe, base: Path, data: Path, output: Path, *, loader_workers: int) -> None:
    """Writes `vision_lora.safetensors` to `output`."""
    torch.manual_seed(recipe.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    config = LlavaConfig.from_hf(read_json(base / "config.json"))
    shallow = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=1))
    model = load_model(base, shallow, accelerator.device, torch.bfloat16)
    plans = {"vision_tower": recipe.tower}
    parts = prepare_parts(model, plans)  # type: ignore[arg-type]
    console.print(describe(parts))
    views = ViewSet(data, recipe, read_preprocessor(base, config))
    reader = PatchReader(model.vision_tower, config.vision.hidden_size, len(views.classes)).to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": parts[0].parameters, "lr": recipe.tower.learning_rate},
            {"params": [*reader.norm.parameters(), *reader.head.parameters()], "lr": recipe.head_rate},
        ],
        weight_decay=0.0,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    trainable = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    objective = accelerator.prepare(reader)
    world = accelerator.num_processes
    per_epoch = len(views) // recipe.batch
    steps = max(1, int(per_epoch * recipe.epochs))
    sampler = LengthGroupedSampler(
        [0] * len(views), recipe.batch, seed=recipe.seed, rank=accelerator.process_index, world=world
    )
    order: list[list[int]] = []
    for epoch in range(-(-steps // per_epoch)):
        sampler.set_epoch(epoch)
        order += [[epoch * len(views) + index for index in batch] for batch in sampler]
    loader = DataLoader(views, batch_sampler=order[:steps], num_workers=loader_workers)
    started, log = time.monotonic(), StepLog(output / "log.jsonl", accelerator.is_main_process)
    with TrainingProgress(console, recipe.name, steps) as progress:
        for step, (pixels, labels) in enumerate(loader):
            factor = cosine_with_warmup(step, steps, recipe.warmup)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            with torch.autocast(accelerator.device.type, torch.bfloat16):
                loss, right = objective(pixels.to(accelerator.device), labels.to(accelerator.device))
            accelerator.backward(loss)
            norm = float(torch.nn.utils.clip_grad_norm_(trainable, recipe.clip))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.write(
                step=step, loss=loss.item(), tokens=labels.numel(), norm=norm, rate=factor, positions=labels.numel(),
                right=right.item(),
            )  # fmt: skip
            progress.advance(loss.item(), labels.numel() * world)
    if accelerator.is_main_process:
        save_parts(model, plans, output)  # type: ignore[arg-type]
        summary = {"recipe": recipe.name, "steps": steps, "seconds": time.monotonic() - started, "final_loss": log.recent_loss()}
        (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
