"""The original layout and Hugging Face's, old and new, become one checkpoint that computes what its makers' did."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.attention import SegmentAttention
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint
from model.errors import CheckpointError
from model.generations import GENERATIONS
from model.tiny import make_tiny_checkpoint

LOGITS = 5e-4  # absolute; logits span about +-9
ROWS = 259  # text tokens, which the original and ours have in common
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
TEXT = [72, 101, 108, 108, 111]

Tensors = dict[str, torch.Tensor]


def imported(source: Path, target: Path, **options: object) -> Checkpoint:
    write_checkpoint(plan_import(source, ImportOptions(**options)), target)
    return load_checkpoint(target, dtype=torch.float32)


def weights(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def inputs(checkpoint: Checkpoint, size: tuple[int, int]) -> tuple[torch.Tensor, list]:
    image = checkpoint.preprocessor.prepare_rgb(picture(*size), "a")
    return torch.tensor([*TEXT, *[checkpoint.config.image_token_id] * image.layout.tokens, *TEXT]), [image]


@torch.inference_mode()
def logits(checkpoint: Checkpoint, size: tuple[int, int] = (150, 61)) -> torch.Tensor:
    """Of every position of text, picture, text; of the tokens that every form of the checkpoint has."""
    model = checkpoint.model
    ids, images = inputs(checkpoint, size)
    hidden = model.language_model(
        model.embed(ids, model.encode_images(images)), torch.arange(len(ids)), SegmentAttention([len(ids)])
    )
    return model.language_model.logits(hidden)[:, :ROWS]


def config_of(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), generation="llava-1.5", seed=5)


FORMS = {  # weights' form, number of shards, vision tower inside
    "llava-1.0": ("bin", 1, False),
    "llava-1.5": ("safetensors", 2, False),
    "llava-1.5-hd": ("bin", 2, True),
    "llava-next-2024-01": ("safetensors", 1, True),
    "llava-next-2024-05": ("bin", 3, True),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_in_the_original_layout_computes_what_its_weights_were_made_for(
    generation: str, tmp_path: Path, originals: Callable
) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation, seed=5)
    form, shards, inside = FORMS[generation]
    source = originals(tiny, tmp_path, form=form, shards=shards, tower_inside=inside)
    told = generation if generation == "llava-1.5-hd" else None  # the original's configuration cannot say it
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower, generation=told)
    direct = load_checkpoint(tiny, dtype=torch.float32)
    assert ours.config == direct.config
    assert ours.preprocessor == direct.preprocessor
    assert (logits(ours) - logits(direct)).abs().max() <= LOGITS


@pytest.mark.parametrize("generation", ["llava-1.5", "llava-next-2024-01", "llava-next-2024-05"])
@torch.inference_mode()
def test_transformers_loads_what_was_imported_and_computes_the_same(
    generation: str, tmp_path: Path, originals: Callable
) -> None:
    from transformers import AutoModelForImageTextToText

    source = originals(make_tiny_checkpoint(tmp_path / "tiny", generation=generation, seed=5), tmp_path)
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    theirs, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    size = (112, 112)  # a size that both rounding rules treat alike
    ids, [image] = inputs(ours, size)
    pixels = image.pixels if ours.config.kind == "llava" else image.pixels[None]
    sizes = {} if ours.config.kind == "llava" else {"image_sizes": torch.tensor([size[::-1]])}
    found = theirs.eval()(input_ids=ids[None], pixel_values=pixels, **sizes).logits[0, :, :ROWS]
    assert (found - logits(ours, size)).abs().max() <= LOGITS


def test_transformers_prepares_text_and_picture_as_we_do(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    from transformers import AutoProcessor

    source = originals(tiny, tmp_path)
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    image = picture(150, 61)
    theirs = processor(text="Hello<image>", images=[image], return_tensors="pt")
    prepared = ours.preprocessor.prepare_rgb(image, "a")
    assert theirs["input_ids"][0].tolist() == [
        *processor.tokenizer("Hello").input_ids,
        *[ours.config.image_token_id] * prepared.layout.tokens,
    ]
    assert (theirs["pixel_values"] - prepared.pixels).abs().max() <= 1e-6


def test_canvases_are_turned_round_and_keep_their_order(tmp_path: Path, originals: Callable) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-next-2024-01")
    source = originals(tiny, tmp_path)
    edit(source.path / "config.json", image_grid_pinpoints=[[56, 168], [112, 56]])
    plan = plan_import(source.path, ImportOptions(vision_tower=source.tower))
    assert plan.raw["image_grid_pinpoints"] == [[168, 56], [56, 112]]
    assert [tuple(canvas) for canvas in plan.config.canvases] == [(56, 168), (112, 56)]
    assert plan.raw["tephra"]["rounding"] == "truncate"


def test_canvases_given_as_a_range_of_grids_are_spelled_out(tmp_path: Path, originals: Callable) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation="llava-next-2024-05")
    source = originals(tiny, tmp_path)
    edit(source.path / "config.json", image_grid_pinpoints="(1x1),...,(2x3)")
    plan = plan_import(source.path, ImportOptions(vision_tower=source.tower))
    assert [(c.width // 56, c.height // 56) for c in plan.config.canvases] == [
        (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)
    ]  # fmt: skip


def test_the_vocabulary_is_padded_with_rows_amid_the_others(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    source = originals(tiny, tmp_path)
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    assert (ours.config.image_token_id, ours.config.text.vocab_size) == (259, 320)
    for name, original in ((EMBEDDING, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        found = weights(tmp_path / "ours")[name]
        assert torch.equal(found[:ROWS], source.tensors[original])
        mean = source.tensors[original].double().mean(0).float()
        assert torch.allclose(found[ROWS:], mean.expand(320 - ROWS, -1), atol=1e-6)


def test_image_marks_of_the_first_generation_become_tokens_around_the_image(
    tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    source = originals(tiny, tmp_path)
    edit(source.path / "config.json", mm_use_im_start_end=True, mm_use_im_patch_token=True)
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    ids = [
        ours.prompter.tokenizer.convert_tokens_to_ids(t) for t in ("<im_patch>", "<im_start>", "<im_end>", "<image>")
    ]
    assert ids == [259, 260, 261, 262]
    assert "<im_start><image><im_end>" in (tmp_path / "ours" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("name", "template"), [("llava-v1.5-7b", "v1"), ("llava-7b-v0", "v0"), ("llava-yi-34b", "chatml")]
)
def test_the_familys_chat_template_is_chosen(
    name: str, template: str, tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    from model.prompts.templates import TEMPLATES

    source = originals(tiny, tmp_path)
    named = source.path.rename(tmp_path / name)
    assert plan_import(named, ImportOptions(vision_tower=source.tower)).template == TEMPLATES[template]
    chosen = plan_import(named, ImportOptions(vision_tower=source.tower, template="llama_3")).template
    assert chosen == TEMPLATES["llama_3"]


def test_a_projector_alone_is_put_on_its_base(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    source = originals(tiny, tmp_path)
    piece = tmp_path / "projector"
    piece.mkdir()
    torch.save({n: t for n, t in source.tensors.items() if "mm_projector" in n}, piece / "mm_projector.bin")
    (piece / "config.json").write_bytes((source.path / "config.json").read_bytes())
    ours = imported(piece, tmp_path / "ours", vision_tower=source.tower, base=source.base)
    assert (logits(ours) - logits(load_checkpoint(tiny, dtype=torch.float32))).abs().max() <= LOGITS
    with pytest.raises(CheckpointError, match="--base names the language model"):
        plan_import(piece, ImportOptions(vision_tower=source.tower))


def test_a_lora_adapter_is_merged_with_what_was_trained_beside_it(
    tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    source = originals(tiny, tmp_path)
    adapter = tmp_path / "lora"
    adapter.mkdir()
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    beside = {f"base_model.model.{n}": t + 1 for n, t in source.tensors.items() if "mm_projector" in n}
    torch.save(beside, adapter / "non_lora_trainables.bin")
    (adapter / "config.json").write_bytes((source.path / "config.json").read_bytes())
    imported(adapter, tmp_path / "ours", vision_tower=source.tower, base=source.base)
    before, after = weights(tiny), weights(tmp_path / "ours")
    assert torch.allclose(after[QUERY], before[QUERY] + 2 * b @ a, atol=1e-5)
    connector = "multi_modal_projector.linear_1.weight"
    assert torch.equal(after[connector], before[connector] + 1)
    untouched = QUERY.replace("layers.1", "layers.0")
    assert torch.equal(after[untouched], before[untouched])


def test_a_delta_is_added_to_its_base_whose_vocabulary_may_be_smaller(
    tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    source = originals(tiny, tmp_path)
    base = load_file(source.base / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        base[name] = base[name][: ROWS - 3].contiguous()
    save_file(base, source.base / "model.safetensors")
    delta = load_file(source.path / "model.safetensors")
    for name in base.keys() & delta.keys():
        delta[name][: base[name].shape[0]] -= base[name] * 0.5
    save_file(delta, source.path / "model.safetensors")
    halved = {name: tensor * 0.5 for name, tensor in base.items()}
    save_file(halved, source.base / "model.safetensors")
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower, base=source.base, delta=True)
    assert (logits(ours) - logits(load_checkpoint(tiny, dtype=torch.float32))).abs().max() <= LOGITS


def as_transformers_5(name: str) -> str:
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    return name


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
@pytest.mark.parametrize("rename", [str, as_transformers_5], ids=["4.37", "5.x"])
def test_every_hugging_face_layout_comes_to_the_same_names(kind: str, rename: Callable, tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny", kind=kind, seed=5)
    before = weights(tiny)
    (tiny / "model.safetensors").unlink()
    torch.save({rename(name): tensor for name, tensor in before.items()}, tiny / "pytorch_model.bin")
    ours = imported(tiny, tmp_path / "ours")
    after = weights(tmp_path / "ours")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert ours.config.kind == kind


def test_what_transformers_5_says_in_its_own_words_is_written_so_that_4_reads_it(tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "tiny")
    text = config_of(tiny)["text_config"]
    text["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    del text["rope_theta"]
    edit(tiny / "config.json", text_config=text, dtype="float32")
    written = plan_import(tiny).raw
    assert written["text_config"]["rope_theta"] == 5e5
    assert {"rope_type": "linear", "factor": 2.0}.items() <= written["text_config"]["rope_scaling"].items()
    assert "rope_parameters" not in written["text_config"]
    assert written["torch_dtype"] == "float32"


def test_a_tokenizer_that_transformers_5_saved_is_written_so_that_4_reads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny = make_tiny_checkpoint(tmp_path / "tiny")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tiny)
    saved = json.loads((tiny / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "TokenizersBackend" and isinstance(saved["extra_special_tokens"], list)
    written = plan_import(tiny).tokenizer.settings
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == saved["extra_special_tokens"]
    assert "extra_special_tokens" not in written
    assert written["model_input_names"] == ["input_ids", "attention_mask"]  # generate() refuses token_type_ids


def test_importing_what_was_imported_changes_nothing(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    source = originals(tiny, tmp_path)
    imported(source.path, tmp_path / "once", vision_tower=source.tower)
    imported(tmp_path / "once", tmp_path / "twice")
    for file in sorted((tmp_path / "once").iterdir()):
        if file.name != "manifest.json":
            assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes(), file.name


def test_weights_are_written_in_the_dtype_that_is_asked_for_and_in_shards(
    tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    source = originals(tiny, tmp_path)
    plan = plan_import(source.path, ImportOptions(vision_tower=source.tower, dtype=torch.bfloat16))
    write_checkpoint(plan, tmp_path / "ours", shard_bytes=100_000)
    shards = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 130_000 for shard in shards)
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors[QUERY], weights(tiny)[QUERY].bfloat16())
    assert config_of(tmp_path / "ours")["torch_dtype"] == "bfloat16"


def test_a_sentencepiece_tokenizer_is_converted(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    import sentencepiece

    source = originals(tiny, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source.path / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what is in the picture", "the cat sat on the mat", "how many cats are there"] * 20),
        model_prefix=str(source.path / "tokenizer"),
        model_type="bpe",
        vocab_size=ROWS + 30,
        byte_fallback=True,
        minloglevel=2,
    )
    (source.path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    ours = imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    reference = sentencepiece.SentencePieceProcessor(str(source.path / "tokenizer.model"))
    text = "what cat is on the picture 12é"
    assert ours.prompter.tokenizer(text).input_ids == [reference.bos_id(), *reference.encode(text)]
    assert ours.config.image_token_id == ROWS + 30
    assert ours.config.text.vocab_size == 320


def test_a_vision_tower_that_is_not_there_is_asked_for(tmp_path: Path, originals: Callable, tiny: Path) -> None:
    source = originals(tiny, tmp_path)
    with pytest.raises(CheckpointError, match="lacks its vision tower nobody/tower; --vision-tower"):
        plan_import(source.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt'"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type 'resampler'"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat'"),
        ({"mm_vision_select_feature": "pooled"}, "mm_vision_select_feature 'pooled'"),
        ({"mm_vision_tower": None}, "mm_vision_tower None"),
        ({"tephra": [1]}, r"config\.json: tephra: expected a JSON object"),
        ({"tephra": {"chat_template": {}}}, r"config\.json: tephra\.chat_template: expected a word"),
        ({"tephra": {"model_type": "llava_four"}}, r"config\.json: model_type 'llava_four'"),
        ({"tephra": {"rounding": "up"}}, r"config\.json: tephra\.rounding: expected round7 or truncate"),
        ({"num_hidden_layers": 3}, "tensors missing"),
        ({"hidden_size": 128}, "config.json makes it"),
    ],
)
def test_an_original_that_cannot_be_brought_in_says_which_field(
    change: dict, message: str, tmp_path: Path, originals: Callable, tiny: Path
) -> None:
    source = originals(tiny, tmp_path)
    edit(source.path / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        imported(source.path, tmp_path / "ours", vision_tower=source.tower)
    assert not (tmp_path / "ours").exists()
