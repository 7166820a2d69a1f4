"""What is wrong with a checkpoint in our layout, in words.

Everything is looked at and all faults are told, unlike in loading, which stops at the first. The weights are read
whole: for numbers that are not finite, and against the digests of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.checkpoint.chat_template import own_template
from model.checkpoint.configuration import read_config
from model.checkpoint.elsewhere import differences, limits, refusals
from model.checkpoint.expected import tensor_faults
from model.checkpoint.files import checked_folder, read_json_if_there
from model.checkpoint.lineage import repository_name
from model.checkpoint.manifest import MANIFEST
from model.checkpoint.names import LM_HEAD
from model.checkpoint.plan import Progress, counter
from model.checkpoint.quantization import is_int8
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.tokenizer_files import TokenizerPlan, plan_tokenizer
from model.checkpoint.weights import tensor_digest
from model.config import LlavaConfig
from model.cpu.int8_checkpoint import int8_faults
from model.errors import CheckpointError, ModelError, PromptError
from model.images import read_preprocessor
from model.prompts import ChatMessage, ImagePart, Prompter, TextPart, load_prompter
from model.prompts.templates import TEMPLATES, compare_templates, recognise_template
from model.prompts.templates.choice import family_template

_VICUNA_GENERATIONS = ("llava-1.0", "llava-1.5", "llava-1.5-hd")

Kind = Literal["fault", "template", "elsewhere", "note"]


@dataclass(frozen=True)
class Finding:
    """A sentence. A fault is wrong everywhere, `elsewhere` in transformers or vLLM only; a note is wrong nowhere."""

    kind: Kind
    text: str


def verify_checkpoint(path: str | Path, *, progress: Progress | None = None) -> list[Finding]:
    """All that was found; nothing when the checkpoint is sound. Raises nothing for a checkpoint that is not."""
    findings: list[Finding] = []
    try:
        directory = checked_folder(path)
        config = read_config(directory)
    except CheckpointError as error:
        return [Finding("fault", str(error))]
    findings += _weights(directory, config, progress)
    findings += _tokenizer_and_template(directory, config)
    findings += _images(directory, config)
    findings += [Finding("elsewhere", f"{text}; the native engine serves it.") for text in refusals(config)]
    findings += [Finding("elsewhere", f"{text}.") for text in limits(config)]
    findings += [Finding("note", f"{text}.") for text in differences(config)]
    return findings


def _weights(directory: Path, config: LlavaConfig, progress: Progress | None) -> Iterator[Finding]:
    try:
        int8 = is_int8(config, str(directory))
        stored = stored_tensors(directory, integers=int8)
        recorded = read_json_if_there(directory / MANIFEST).get("tensors") or {}
        if int8:
            yield from (Finding("fault", fault) for fault in int8_faults(config, stored))
            yield Finding("elsewhere", "int8 weights of ours mean nothing to transformers and vLLM, which refuse them.")
        else:
            yield from _float_tensors(config, stored)
        advance = counter("reading", sum(tensor.nbytes for tensor in stored.values()), progress)
        yield from _numbers(stored, recorded if isinstance(recorded, Mapping) else {}, advance)
    except CheckpointError as error:
        yield Finding("fault", str(error))


def _float_tensors(config: LlavaConfig, stored: dict[str, StoredTensor]) -> Iterator[Finding]:
    if config.text.tied_embeddings:
        stored.pop(LM_HEAD, None)  # older saves write the token table twice
    for fault in tensor_faults(config, stored):
        yield Finding("fault", fault)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()})
    if len(dtypes) > 1:
        yield Finding("fault", f"tensors are of several dtypes: {', '.join(dtypes)}")


def _numbers(
    stored: Mapping[str, StoredTensor], recorded: Mapping[str, Any], advance: Callable[[int], None]
) -> Iterator[Finding]:
    for name, tensor in sorted(stored.items()):
        try:
            digest = tensor_digest(tensor, advance)
        except CheckpointError as error:
            yield Finding("fault", str(error))
            continue
        if recorded and recorded.get(name) != digest:
            yield Finding("fault", f"{tensor.file.name}: {name} is not the one that manifest.json records")


def _tokenizer_and_template(directory: Path, config: LlavaConfig) -> Iterator[Finding]:
    rows = config.text.vocab_size
    try:
        tokenizer = plan_tokenizer(directory, ())
        if tokenizer.size > rows:
            yield Finding(
                "fault", f"the tokenizer gives ids up to {tokenizer.size - 1}, beyond the vocabulary of {rows}"
            )
        if tokenizer.tokenizer.id_to_token(config.image_token_id) is None:
            yield Finding("fault", f"the tokenizer does not know image_token_index {config.image_token_id}")
        told = read_json_if_there(directory / "generation_config.json").get("eos_token_id")
        for stop in told if isinstance(told, list) else [told]:
            if stop is not None and not (type(stop) is int and 0 <= stop < rows):
                yield Finding(
                    "fault", f"generation_config.json: eos_token_id {stop!r} is beyond the vocabulary of {rows}"
                )
        yield from _template(directory, config, tokenizer)
        yield from _rendering(load_prompter(directory, config), config)
    except ModelError as error:
        yield Finding("fault", str(error))


def _template(directory: Path, config: LlavaConfig, tokenizer: TokenizerPlan) -> Iterator[Finding]:
    template = own_template(directory, tokenizer)
    if template is None:
        yield Finding("template", "there is no chat template, so that only /v1/completions can be served")
        return
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    family = family_template(config.raw, repository_name(directory), special)
    if family is None and config.generation in _VICUNA_GENERATIONS and "<|im_start|>" not in special:
        family = "v1"
    recognised = recognise_template(template)
    chosen_at_import = recognised is not None and config.generation is not None
    if family is None or recognised == family or chosen_at_import:
        return
    for difference in compare_templates(template, TEMPLATES[family]):
        yield Finding("template", f"the chat template {difference} (compared with {family})")


def _rendering(prompter: Prompter, config: LlavaConfig) -> Iterator[Finding]:
    """Whether the template takes anything at all: a question, one about a picture, a picture."""
    if prompter.template is None:
        return
    layout = config.geometry.layout(config.vision.image_size, config.vision.image_size)
    picture, question = ImagePart(), TextPart("?")
    refusals = []
    for parts, layouts in (((question,), []), ((picture, question), [layout]), ((picture,), [layout])):
        try:
            prompter.build([ChatMessage("user", parts)], layouts)
        except PromptError as error:
            refusals.append(str(error))
    if len(refusals) == 3:
        yield Finding("template", refusals[0])
    elif len(refusals) == 2:
        yield Finding(
            "note",
            "the chat template is one of stage 1: it takes pictures without questions; --chat-template serves with "
            "another.",
        )


def _images(directory: Path, config: LlavaConfig) -> Iterator[Finding]:
    try:
        base = read_preprocessor(directory, config).geometry.base
        raw = read_json_if_there(directory / "preprocessor_config.json")
        processor = read_json_if_there(directory / "processor_config.json")
    except CheckpointError as error:
        yield Finding("fault", str(error))
        return
    should_pad = config.image_mode == "pad" or config.generation == "llava-1.5"
    if config.kind == "llava" and should_pad and base != "pad":
        yield Finding("fault", "preprocessor_config.json: do_pad is missing, so that images are cropped, not padded")
    elif config.kind == "llava" and should_pad and raw.get("image_processor_type", "").startswith("CLIP"):
        yield Finding(
            "fault", "preprocessor_config.json: CLIPImageProcessor does not pad; it must be LlavaImageProcessor"
        )
    strategy = "default" if config.drop_cls else "full"
    if processor.get("vision_feature_select_strategy", strategy) != strategy:
        yield Finding(
            "fault", f"processor_config.json: vision_feature_select_strategy must be {strategy}, as in config.json"
        )
    extra = 1 if config.vision.has_cls_token else 0
    if processor.get("num_additional_image_tokens", extra) != extra:
        yield Finding(
            "fault", f"processor_config.json: num_additional_image_tokens must be {extra} for {config.vision.kind}"
        )
    canvases = [[canvas.height, canvas.width] for canvas in config.canvases]
    if canvases and raw.get("image_grid_pinpoints", canvases) != canvases:
        yield Finding("fault", "preprocessor_config.json: image_grid_pinpoints are not those of config.json")
