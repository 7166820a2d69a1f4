"""One stage of training: load, freeze, step, save.

Runs on one process or many (`torchrun`, through accelerate): every step takes one global batch, each process its share,
and gradients are weighed by tokens, not by processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from torch.utils.data import DataLoader

from model.checkpoint.files import read_json
from model.checkpoint.load import load_model
from model.config import LlavaConfig
from model.images import read_preprocessor
from model.llava import LlavaModel
from model.prompts import load_prompter
from training.data.batches import Batch, ExampleSet, LengthGroupedSampler, collate
from training.data.conversations import read_conversations
from training.objective import Objective
from training.parts import TrainedPart, carry_over, describe, load_parts, prepare_parts, save_parts
from training.progress import StepLog, TrainingProgress
from training.recipes.recipe import Recipe
from training.schedule import cosine_with_warmup

_SAVE_SECONDS = 300.0  # a run that is cut off leaves the parts that it had trained by then


class TrainingError(RuntimeError):
    """The run cannot go on; the message names the cause."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where a run reads and writes."""

    base: Path  # checkpoint directory
    data: Path  # folder to which the recipe's data paths are relative
    output: Path  # trained parts, log and summary of this stage
    init_from: Path | None  # output folder of the stage before


class Trainer:
    """Runs one recipe."""

    def __init__(self, recipe: Recipe, paths: RunPaths, *, loader_workers: int = 1) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.paths = paths
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self._console = Console(stderr=True, quiet=not self.accelerator.is_main_process)
        self._model = self._load_model()
        self._parts = self._prepare_parts()
        self._loader, self._sampler = self._load_data(loader_workers)
        self._console.print(f"{self.steps} steps of {recipe.batch} rows")

    @property
    def steps(self) -> int:
        return max(1, int(len(self._sampler) * self.recipe.epochs))

    def run(self) -> None:
        """Trains to the end and writes the trained parts. Raises TrainingError when the loss is not a number."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            [{"params": part.parameters, "lr": part.plan.learning_rate} for part in self._parts],
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.999),
        )
        objective = self.accelerator.prepare(Objective(self._model))
        rates = [part.plan.learning_rate for part in self._parts]
        trainable = [parameter for part in self._parts for parameter in part.parameters]
        started = saved = time.monotonic()
        log = StepLog(self.paths.output / "log.jsonl", self.accelerator.is_main_process)
        with TrainingProgress(self._console, recipe.name, self.steps) as progress:
            for step, batch in enumerate(self._batches()):
                factor = cosine_with_warmup(step, self.steps, recipe.warmup)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                loss, tokens = self._backward(objective, batch)
                norm = float(torch.nn.utils.clip_grad_norm_(trainable, recipe.clip))
                if not (loss == loss and norm == norm):
                    raise TrainingError(f"step {step}: the loss is not a number; rows {', '.join(batch.ids)}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                positions = len(batch.token_ids)
                told = {"step": step, "loss": loss, "norm": norm, "rate": factor, "positions": positions}
                log.write(told, tokens=tokens)
                progress.advance(loss, positions * self.accelerator.num_processes)
                if self.accelerator.is_main_process and time.monotonic() - saved > _SAVE_SECONDS:
                    save_parts(self._model, recipe.parts, self.paths.output)
                    saved = time.monotonic()
        self._finish(log, time.monotonic() - started)

    def _backward(self, objective: torch.nn.Module, batch: Batch) -> tuple[float, int]:
        """Gradients of the mean over the supervised tokens of the global batch; returns (loss, tokens)."""
        with torch.autocast(self.accelerator.device.type, torch.bfloat16):
            total = objective(batch)
        sums = torch.stack([total.detach().float(), torch.tensor(float(len(batch.targets)), device=total.device)])
        loss_sum, tokens = self.accelerator.reduce(sums, "sum").tolist()
        # Gradients are averaged over processes: the factor turns that average into a sum.
        self.accelerator.backward(total * (self.accelerator.num_processes / tokens))
        return loss_sum / tokens, int(tokens)

    def _batches(self) -> Iterator[Batch]:
        taken = 0
        epoch = 0
        while taken < self.steps:
            self._sampler.set_epoch(epoch)
            for batch in self._loader:
                if taken == self.steps:
                    return
                taken += 1
                yield _to_device(batch, self.accelerator.device)
            epoch += 1

    def _load_model(self) -> LlavaModel:
        config = LlavaConfig.from_hf(read_json(self.paths.base / "config.json"))
        return load_model(self.paths.base, config, self.accelerator.device, torch.bfloat16)

    def _prepare_parts(self) -> list[TrainedPart]:
        parts = prepare_parts(self._model, self.recipe.parts)
        if self.paths.init_from is not None:
            used = load_parts(self._model, self.recipe.parts, self.paths.init_from)
            self._console.print(f"starts from {self.paths.init_from}: {', '.join(used)}")
        self._console.print(describe(parts))
        return parts

    def _load_data(self, workers: int) -> tuple[DataLoader[Batch], LengthGroupedSampler]:
        config = self._model.config
        plan = self.recipe.data
        rows = read_conversations(self.paths.data / plan.file, self.paths.data / plan.images)
        examples = ExampleSet(
            rows,
            load_prompter(self.paths.base, config),
            read_preprocessor(self.paths.base, config),
            view=self.recipe.view,
            max_length=self.recipe.max_length,
        )
        sampler = LengthGroupedSampler(
            [row.text_length for row in rows],
            self.recipe.batch,
            seed=self.recipe.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        if not len(sampler):
            raise TrainingError(f"{len(rows)} rows do not fill one batch of {self.recipe.batch}")
        loader: DataLoader[Batch] = DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
        )
        return loader, sampler

    def _finish(self, log: StepLog, seconds: float) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            output = self.paths.output
            carry_over(self.paths.init_from, output)
            save_parts(self._model, self.recipe.parts, output)
            summary = log.summarise(output / "summary.json", self.recipe.name, seconds)
            self._console.print(f"{summary.steps} steps in {seconds:.0f} s, loss {summary.final_loss:.4f} -> {output}")


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    names = ("token_ids", "positions", "branches", "predictors", "targets")
    there = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in there.items()}
    return dataclasses.replace(batch, **moved)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Ends the process group that accelerate may have started, however the run went."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
