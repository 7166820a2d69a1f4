"""What a checkpoint is, for people and programs: parts, sizes, generation, template, digests. It judges nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.chat_template import own_template
from model.checkpoint.configuration import read_config
from model.checkpoint.files import checked_folder, read_json_if_there
from model.checkpoint.manifest import MANIFEST, roll_up_parts
from model.checkpoint.names import PARTS, part_of
from model.checkpoint.plan import Progress, counter
from model.checkpoint.quantization import is_int8
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.tokenizer_files import plan_tokenizer
from model.checkpoint.weights import tensor_digest
from model.config import LlavaConfig
from model.errors import PromptError
from model.prompts.templates import MARKED_IMAGE, recognise_template


@dataclass(frozen=True)
class PartSummary:
    name: str
    described: str
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    digest: str | None


@dataclass(frozen=True)
class Summary:
    path: str
    model_type: str
    generation: str | None  # None: the checkpoint does not say
    images: str
    image_tokens: int  # the most that one image can cost
    context_length: int
    vocabulary: int
    image_token_id: int
    template: str | None  # a name of ours, "its own", or None
    version: str | None
    source: str | None  # what it was imported from
    parent: str | None  # the version, or else the name, of the checkpoint whose language model it began as
    quantization: str | None  # None: weights are floating-point numbers
    made_from: tuple[str, ...]  # every directory that went into it
    parts: tuple[PartSummary, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)


def summarise(path: str | Path, *, digests: bool = False, progress: Progress | None = None) -> Summary:
    """Digests are the manifest's; with `digests` they are computed where it has none, by reading all weights.

    Raises CheckpointError.
    """
    directory = checked_folder(path)
    config = read_config(directory)
    int8 = is_int8(config, str(directory))
    stored = stored_tensors(directory, integers=int8)
    manifest = read_json_if_there(directory / MANIFEST)
    known = manifest.get("parts")
    rolled: Mapping[str, str] = known if isinstance(known, Mapping) else {}
    if digests and not rolled:
        advance = counter("reading", sum(tensor.nbytes for tensor in stored.values()), progress)
        rolled = roll_up_parts({name: tensor_digest(tensor, advance) for name, tensor in stored.items()})
    return Summary(
        path=str(directory),
        model_type=config.kind,
        generation=config.generation,
        images=describe_images(config),
        image_tokens=config.geometry.max_tokens,
        context_length=config.text.context_length,
        vocabulary=config.text.vocab_size,
        image_token_id=config.image_token_id,
        template=describe_template(own_template(directory, plan_tokenizer(directory, ()))),
        version=_text(manifest.get("version")),
        source=_text(manifest.get("source")),
        parent=_text(manifest.get("parent")),
        made_from=tuple(_origins(manifest.get("made_from"))),
        quantization="int8" if int8 else None,
        parts=tuple(_part(name, config, stored, rolled.get(name)) for name in PARTS),
    )


def summarise_part(
    name: str, described: str, tensors: Collection[StoredTensor], digest: str | None = None
) -> PartSummary:
    return PartSummary(
        name=name,
        described=described,
        tensors=len(tensors),
        parameters=sum(tensor.numel for tensor in tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
        dtype=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        digest=digest,
    )


def _part(name: str, config: LlavaConfig, stored: Mapping[str, StoredTensor], digest: str | None) -> PartSummary:
    vision, text = config.vision, config.text
    described = {
        "vision_tower": f"{vision.kind}, {vision.layers} layers, {vision.image_size} px / {vision.patch_size}, "
        f"feature {config.feature_layer}",
        "connector": config.connector
        + (f", {config.connector_activation}" if config.connector == "mlp" else "")
        + f", {vision.hidden_size} to {text.hidden_size}",
        "language_model": f"{text.kind}, {text.layers} layers, width {text.hidden_size}"
        + (", tied embeddings" if text.tied_embeddings else ""),
    }
    tensors = [tensor for tensor_name, tensor in stored.items() if part_of(tensor_name) == name]
    return summarise_part(name, described[name], tensors, digest)


def describe_images(config: LlavaConfig) -> str:
    if config.image_mode in ("crop", "pad"):
        return config.image_mode
    limit = f", at most {config.max_tiles} tiles' features" if config.max_tiles is not None else ""
    rounding = f", rounding {config.rounding}" if config.image_mode == "anyres" else ""
    return f"{config.image_mode}, {len(config.canvases)} canvases{limit}{rounding}"


def describe_template(template: str | None) -> str | None:
    """A name of ours, "its own", what is wrong with it; None where there is none."""
    if template is None:
        return None
    try:
        name = recognise_template(template) or "its own"
        return f"{name}, with {MARKED_IMAGE}" if MARKED_IMAGE in template else name
    except PromptError as error:
        return f"unusable: {error}"


def _origins(recorded: object) -> Iterator[str]:
    for origin in recorded if isinstance(recorded, list) else ():
        if isinstance(origin, Mapping) and isinstance(origin.get("name"), str):
            told = [f"{field} {origin[field]}" for field in ("version", "revision") if field in origin]
            yield f"{origin.get('role', 'source')} {origin['name']}" + (f" ({', '.join(told)})" if told else "")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
