"""Puts one worker together from its settings: checkpoint, engine, intake, metrics, all that the API needs.

The one place where the worker's parts learn of each other. Nothing here answers requests.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from msgspec import structs

from model.checkpoint import load_checkpoint
from model.config import LlavaConfig
from model.cpu.fused import can_fuse, fuse
from model.cpu.int8 import check_int8, to_int8
from model.cpu.int8_checkpoint import is_stored_in_int8, load_int8_checkpoint
from model.cpu.invariant import can_be_invariant, make_invariant
from model.cpu.kernels import team
from model.errors import ModelError
from model.images import ImagePreprocessor
from model.llava import LlavaModel
from model.prompts import Prompter
from model.prompts.templates import TEMPLATES, compare_templates, family_template, find_template
from server.media.fetch import ImageFetcher
from server.protocol.registration import ImageCard, ModelCard
from worker.answers.token_bytes import TokenBytes
from worker.engine.config import EngineConfig
from worker.engine.native import NativeEngine
from worker.engine.protocol import Engine
from worker.gate import Gate
from worker.grammar.bounds import Bounds
from worker.grammar.compiler import CompilerLimits, GrammarCompiler
from worker.grammar.vocabulary import GrammarVocabulary
from worker.grammars import Grammars
from worker.intake import ImageSource, Intake, IntakeLimits
from worker.metrics import WorkerMetrics
from worker.sampling import Sampler
from worker.service import Service, ServiceLimits
from worker.settings import StartError, WorkerSettings
from worker.version import checkpoint_version

log = logging.getLogger("tephra.worker")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelFiles:
    """What of a checkpoint the API's side needs; the weights are the engine's."""

    config: LlavaConfig
    prompter: Prompter
    preprocessor: ImagePreprocessor


def start_service(settings: WorkerSettings) -> Service:
    """Loads the checkpoint and makes the engine, which is not started yet. Slow: call it off the event loop.

    Raises StartError.
    """
    directory = Path(settings.model or "").expanduser()
    device = _device(settings.device)
    name = settings.served_name or directory.resolve().name
    try:
        stored = is_stored_in_int8(directory)
        int8 = stored or settings.quantization == "int8"
        dtype = _dtype(settings.dtype, device, int8=int8)
        if stored:
            check_int8(device, dtype)
            checkpoint = load_int8_checkpoint(directory)
        else:
            checkpoint = load_checkpoint(directory, device=device, dtype=dtype)
            make_quick(checkpoint.model, int8=int8)
        team.disband()  # from here on only the engine's thread computes
        version = settings.version_id or checkpoint_version(directory)
        metrics = WorkerMetrics(name, version)
        weights = f"{version}:{'int8' if int8 else 'none'}"
        engine = NativeEngine(checkpoint.model, _engine_config(settings), observer=metrics, weights=weights)
        prompter = choose_prompter(checkpoint.prompter, checkpoint.config, directory, settings.chat_template)
        files = ModelFiles(checkpoint.config, prompter, checkpoint.preprocessor)
        service = assemble(settings, files, engine, metrics, name=name, version=version)
        return replace(service, device=device)
    except (ModelError, ValueError, OSError) as error:
        raise StartError(" ".join(str(error).split())) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise StartError(f"not enough memory on {device} for {directory}") from error


def make_quick(model: LlavaModel, *, int8: bool) -> LlavaModel:
    """Replaces layers of a loaded model by those that its device computes best. Raises ModelError where there is no
    int8."""
    if int8:
        return to_int8(model)
    if can_fuse(model.device, model.dtype):
        return fuse(model)
    return make_invariant(model) if can_be_invariant(model.device, model.dtype) else model


def choose_prompter(own: Prompter, config: LlavaConfig, directory: Path, wanted: str | None) -> Prompter:
    """The checkpoint's own, or with the template that was asked for. Logs one line where the template that is served
    is not what the checkpoint's family was trained with. Raises PromptError."""
    prompter = own if wanted is None else own.with_template(find_template(wanted))
    family = family_template(config.raw, str(directory.resolve()), own.special_tokens)
    if family is not None and prompter.template is not None:
        differences = compare_templates(prompter.template, TEMPLATES[family])
        if differences:
            log.warning(
                "The chat template is not the format '%s' that this model's family was trained with: it %s. "
                "Answers may suffer; --chat-template %s serves with that format.",
                family,
                "; it ".join(differences),
                family,
            )
    return prompter


def assemble(
    settings: WorkerSettings,
    files: ModelFiles,
    engine: Engine,
    metrics: WorkerMetrics,
    *,
    name: str,
    version: str,
    source: ImageSource | None = None,
) -> Service:
    """The service around an engine, whichever it is."""
    limits = IntakeLimits(
        max_images=settings.max_images,
        max_image_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_total_pixels=settings.max_request_pixels,
        cache_bytes=settings.image_cache_bytes,
        threads=settings.image_threads,
    )
    gate = Gate(settings.max_requests, settings.max_images_held)
    metrics.follow_load(engine.load)
    metrics.follow("requests_in_hand", "Requests that the API has let in.", lambda: gate.requests)
    metrics.follow("images_in_hand", "Images that those requests hold.", lambda: gate.images)
    intake = Intake(files.prompter, files.preprocessor, source or ImageFetcher(settings, metrics), limits)
    metrics.follow("image_cache_bytes", "Decoded images that are kept.", lambda: intake.prepared.kept_bytes)
    metrics.follow("image_cache_images", "How many images those are.", lambda: intake.prepared.kept)
    metrics.follow("images_in_preparation", "Images being decoded now.", lambda: intake.prepared.under_way)
    tokens = TokenBytes(files.prompter.tokenizer)
    keys = {*settings.api_keys, *([settings.worker_secret] if settings.worker_secret else [])}
    return Service(
        card=with_abilities(
            model_card(files.config, name, version, engine.context_length, settings.max_images), files.prompter
        ),
        engine=engine,
        intake=intake,
        tokens=tokens,
        sampler=Sampler(files.config.text.vocab_size, files.prompter.stop_token_ids),
        grammars=_grammars(settings, files, tokens, metrics),
        stop_strings=files.prompter.stop_strings,
        space_first=files.prompter.puts_space_first,
        gate=gate,
        metrics=metrics,
        limits=ServiceLimits(
            request_seconds=settings.request_seconds,
            body_seconds=settings.body_seconds,
            send_seconds=settings.send_seconds,
            max_body_bytes=settings.max_body_bytes,
            default_max_tokens=settings.default_max_tokens,
        ),
        api_keys=frozenset(keys),
        worker_secret=settings.worker_secret,
    )


def _grammars(settings: WorkerSettings, files: ModelFiles, tokens: TokenBytes, metrics: WorkerMetrics) -> Grammars:
    make_vocabulary = partial(
        GrammarVocabulary,
        tokens,
        files.prompter.encode_continuation,
        size=files.config.text.vocab_size,
        end_token_ids=files.prompter.stop_token_ids,
        structural=(files.config.image_token_id,),
    )
    limits = CompilerLimits(
        seconds=settings.grammar_seconds,
        step_seconds=settings.grammar_step_seconds,
        max_waiting=settings.grammar_waiting,
        cache_entries=settings.grammar_cache,
        threads=settings.grammar_threads,
    )
    compiler = GrammarCompiler(make_vocabulary, limits, metrics) if files.prompter.stop_token_ids else None
    return Grammars(compiler, Bounds(settings.max_grammar_bytes), metrics)


def model_card(config: LlavaConfig, name: str, version: str, context_length: int, max_images: int) -> ModelCard:
    geometry = config.geometry
    image = ImageCard(
        tile=geometry.tile,
        grid=geometry.grid,
        canvases=[(canvas.width, canvas.height) for canvas in geometry.canvases],
        extra_tokens=geometry.extra_tokens,
        unpad=geometry.unpad,
        max_tiles=geometry.max_tiles,
        several_images=geometry.several_images,
        newline=geometry.newline,
    )
    return ModelCard(name, version, context_length, int(time.time()), image, max_images)


def with_abilities(card: ModelCard, prompter: Prompter) -> ModelCard:
    """What answers can be had beside plain text."""
    forms = bool(prompter.stop_token_ids)  # an answer of a form ends with one of them
    tools = "none" if not forms else "forced" if prompter.tool_format is None else "auto"
    return structs.replace(card, structured_output=forms, tools=tools, logprobs=True)


def _engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        max_step_tokens=settings.max_step_tokens,
        max_step_tiles=settings.max_step_tiles,
        block_size=settings.block_size,
        kv_cache_bytes=settings.kv_cache_bytes,
        context_length=settings.context_length,
        prefix_cache=settings.prefix_cache,
        feature_cache_bytes=settings.feature_cache_bytes,
        check_blocks=settings.check_blocks,
        cuda_graphs=settings.cuda_graphs,
        threads=settings.threads,
    )


def _dtype(name: str, device: str, *, int8: bool) -> torch.dtype:
    """bfloat16 wherever it is multiplied natively (five to eight times float32 on such CPUs), and beside int8, which
    multiplies for itself; else float32."""
    if name != "auto":
        return DTYPES[name]
    native = int8 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native or device.startswith("cuda") else torch.float32


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise StartError(f"--device {name}: torch sees no CUDA device; use --device cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise StartError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return name
