"""Damaged and hostile checkpoints: one line that says what is wrong, nothing written, nothing run, little memory."""

import json
import os
import pickle
import re
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_checkpoint
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint
from model.checkpoint.verify import verify_checkpoint
from model.errors import CheckpointError, PromptError
from model.prompts import ChatMessage, TextPart
from model.tiny import make_tiny_checkpoint

MOST_MEMORY = 256 << 20  # bytes that a refusal may cost; what the hostile ones ask for is gigabytes
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("sound") / "checkpoint")


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def edit_config(folder: Path, **changes: object) -> None:
    edit_section(folder, None, **changes)


def edit_section(folder: Path, section: str | None, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (raw if section is None else raw[section]).update(changes)
    (folder / "config.json").write_text(json.dumps(raw))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder))


def edit_header(folder: Path, change: Callable[[dict], object]) -> None:
    data = weights(folder).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def split(folder: Path) -> dict[str, str]:
    """Two shards with their index; returns its map."""
    tensors = load_file(weights(folder))
    names = sorted(tensors)
    places = {}
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    weights(folder).unlink()
    index(folder, places)
    return places


def twice(folder: Path) -> None:
    split(folder)
    both = {**load_file(folder / "b.safetensors"), NORM: torch.zeros(64)}
    save_file({**both, "image_newline": torch.zeros(64)}, folder / "b.safetensors")


def missing_shard(folder: Path) -> None:
    split(folder)
    (folder / "b.safetensors").unlink()


def listed_but_absent(folder: Path) -> None:
    places = split(folder)
    index(folder, {**places, "image_oldline": "a.safetensors"})


def link_out(folder: Path) -> None:
    outside = folder.parent / "elsewhere.safetensors"
    weights(folder).rename(outside)
    weights(folder).symlink_to(outside)


def link_circle(folder: Path) -> None:
    weights(folder).unlink()
    weights(folder).symlink_to(folder / "other.safetensors")
    (folder / "other.safetensors").symlink_to(weights(folder))


def link_secret(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")


def directory_for(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def text_for(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def template(text: str) -> Callable[[Path], object]:
    return text_for("chat_template.jinja", text)


def cut(size: int) -> Callable[[Path], object]:
    return lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:size])


def header_of(length: int) -> Callable[[Path], object]:
    return lambda folder: weights(folder).write_bytes(struct.pack("<Q", length) + b"{}" + bytes(64))


def overlap(header: dict) -> None:
    header[NORM]["data_offsets"] = header["image_newline"]["data_offsets"]


def outside_file(header: dict) -> None:
    header[NORM]["data_offsets"] = [2**40, 2**40 + 256]


def not_finite(value: float) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda tensors: tensors[NORM].__setitem__(7, value))


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"

KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut short": (cut(-100), "not a readable safetensors file"),
    "weights cut within the header": (cut(50), "not a readable safetensors file"),
    "weights empty": (cut(0), "not a readable safetensors file"),
    "header of 2**60 bytes": (header_of(2**60), "not a readable safetensors file"),
    "header longer than the file": (header_of(5000), "not a readable safetensors file"),
    "header no JSON": (lambda f: weights(f).write_bytes(struct.pack("<Q", 8) + b"not json"), "not a readable"),
    "offsets that overlap": (lambda f: edit_header(f, overlap), "not a readable safetensors file"),
    "offsets outside the file": (lambda f: edit_header(f, outside_file), "not a readable safetensors file"),
    "NaN": (not_finite(float("nan")), f"{re.escape(NORM)} holds NaN"),
    "infinity": (not_finite(float("inf")), f"{re.escape(NORM)} holds NaN or infinite"),
    "a wrong shape": (lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(3)})), r"has shape \[3\]"),
    "a wrong dtype": (
        lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)})),
        "stored as I8",
    ),
    "a missing tensor": (lambda f: edit_weights(f, lambda t: t.pop(NORM)), f"missing.*{re.escape(NORM)}"),
    "a tensor in two shards": (twice, "is also in a.safetensors"),
    "a missing shard": (missing_shard, "b.safetensors is missing"),
    "a tensor that only the index knows": (listed_but_absent, "lists image_oldline, but no shard holds it"),
    "an index that leads outside": (lambda f: index(f, {"a": "../../etc/passwd"}), "outside the checkpoint"),
    "an index with an absolute path": (lambda f: index(f, {"a": "/etc/passwd"}), "outside the checkpoint"),
    "an index that names itself": (
        lambda f: index(f, {"a": "model.safetensors.index.json"}),
        "is no .safetensors file",
    ),
    "an index within an index": (lambda f: index(f, {"a": {"weight_map": {"a": "b"}}}), "is no file name but dict"),
    "an index without a map": (lambda f: index(f, [1, 2]), "no weight_map"),
    "weights linked from elsewhere": (link_out, "links to a file outside the checkpoint"),
    "a small file linked from elsewhere": (link_secret, "links to a file outside the checkpoint"),
    "links in a circle": (link_circle, "cannot be opened"),
    "a directory for weights": (directory_for("model.safetensors"), "not a file"),
    "a directory for config.json": (directory_for("config.json"), "not a file"),
    "config.json not UTF-8": (text_for("config.json", b'{"model_type": "\xff\xfe"}'), "cannot be read as JSON"),
    "config.json nested deeply": (text_for("config.json", "[" * 200_000), "cannot be read as JSON"),
    "config.json of 20 MB": (text_for("config.json", b" " * (20 << 20)), "a file of this kind has at most"),
    "config.json a list": (text_for("config.json", "[]"), "expected a JSON object"),
    "10**12 layers": (lambda f: edit_section(f, "text_config", num_hidden_layers=10**12), "num_hidden_layers"),
    "2**30 layers": (lambda f: edit_section(f, "text_config", num_hidden_layers=2**30), "expected 1 to 512"),
    "a width of 2**30": (lambda f: edit_section(f, "vision_config", hidden_size=2**30), "hidden_size"),
    "a negative size": (lambda f: edit_section(f, "text_config", intermediate_size=-5), "intermediate_size"),
    "a size in words": (lambda f: edit_section(f, "text_config", head_dim="many"), "head_dim|not of its kind"),
    "an angle in words": (lambda f: edit_section(f, "text_config", rope_theta="wide"), "rope_theta|not of its kind"),
    "an unknown model_type": (lambda f: edit_config(f, model_type="minigpt"), "model_type 'minigpt'"),
    "an image token beyond the vocabulary": (lambda f: edit_config(f, image_token_index=320), "outside the vocabulary"),
    "canvases for giants": (lambda f: edit_config(f, image_grid_pinpoints=[[56 * 10**9] * 2]), "image_grid_pinpoints"),
    "very many canvases": (lambda f: edit_config(f, image_grid_pinpoints=[[56, 112]] * 10**5), "image_grid_pinpoints"),
    "a vision layer that is not there": (lambda f: edit_config(f, vision_feature_layer=99), "does not exist"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "a broken tokenizer": (text_for("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3}}'), "tokenizer"),
    "a template that does not end": (template(LOOP), "does not finish|steps"),
    "a template that fills memory": (template(DOUBLING), "text|memory|characters"),
    "a template that is no Jinja": (template("{% for %}"), "template"),
    "a template not UTF-8": (text_for("chat_template.jinja", b"\xff\xfe\x00"), "UTF-8|not readable as text"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_checkpoint_gives_one_clear_error_and_touches_nothing(
    kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    damage, message = KINDS[kind]
    damage(checkpoint)
    before = tree(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for door in (load_checkpoint, lambda path: write_checkpoint(plan_import(path), tmp_path / "target")):
        with pytest.raises(CheckpointError, match=message) as caught:
            door(checkpoint)
        assert "\n" not in str(caught.value)
    findings = verify_checkpoint(checkpoint)
    assert any(re.search(message, finding.text) for finding in findings)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MOST_MEMORY
    assert tree(tmp_path) == before


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def archive(file: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as out:
        out.writestr("archive/data.pkl", data)
        out.writestr("archive/byteorder", "little")
        out.writestr("archive/version", "3\n")


def bomb(protocol: int) -> Callable[[Path], None]:
    return lambda file: archive(file, pickle.dumps({"x": Bomb(file.parent / "exploded")}, protocol))


def rows_without_storage(file: Path) -> None:
    torch.save({NORM: torch.ones(1).expand(10**7, 10**5)}, file)


def half(file: Path) -> None:
    torch.save({NORM: torch.ones(64)}, file)
    file.write_bytes(file.read_bytes()[:200])


PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (bomb(2), "names 'posix.system', which is no tensor"),
    "a bomb of a newer protocol": (bomb(4), "pickle opcode STACK_GLOBAL"),
    "a bomb of the old format": (
        lambda file: file.write_bytes(pickle.dumps(Bomb(file.parent / "exploded"))),
        "not a readable .bin file",
    ),
    "a zip bomb": (lambda file: archive(file, bytes(100 << 20), zipfile.ZIP_DEFLATED), "compressed members"),
    "a pickle without end": (lambda file: archive(file, b"\x80\x02}q\x00("), "not a readable .bin file"),
    "a file cut short": (half, "not a readable .bin file"),
    "an empty file": (lambda file: file.write_bytes(b""), "not a readable .bin file"),
    "a list": (lambda file: torch.save([torch.ones(3)], file), "expected a dictionary"),
    "whole numbers": (lambda file: torch.save({NORM: torch.ones(64, dtype=torch.int64)}, file), "floating-point"),
    "something that is no tensor": (lambda file: torch.save({NORM: "weights"}, file), "is no plain tensor"),
    "a terabyte of one number": (rows_without_storage, "more than are stored"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_malformed_pickle_is_named_and_never_run(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    make, message = PICKLES[kind]
    weights(checkpoint).unlink()
    make(checkpoint / "pytorch_model.bin")
    before = tree(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        write_checkpoint(plan_import(checkpoint), tmp_path / "target")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="pickled weights are not loaded"):
        load_checkpoint(checkpoint)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MOST_MEMORY
    assert tree(tmp_path) == before


def test_a_bomb_beside_an_original_is_not_run_either(checkpoint: Path, tmp_path: Path) -> None:
    piece = tmp_path / "piece"
    piece.mkdir()
    (piece / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "tower"}))
    bomb(2)(piece / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"names 'posix\.system'"):
        plan_import(piece, ImportOptions(base=checkpoint))
    assert not (piece / "exploded").exists()


def test_a_template_that_reaches_into_python_refuses_to_render(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "reached"
    call = f"{{{{ ''.__class__.__mro__[1].__subclasses__()[0]('{marker}') }}}}"
    template(call)(checkpoint)
    prompter = load_checkpoint(checkpoint).prompter
    with pytest.raises(PromptError, match="refuses this conversation"):
        prompter.build([ChatMessage("user", (TextPart("hello"),))], [])
    assert any("refuses" in finding.text for finding in verify_checkpoint(checkpoint))


def test_links_within_a_hugging_face_cache_are_followed(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--who--what"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        file.rename(blobs / f"{number:04d}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:04d}")
    assert load_checkpoint(snapshot).config.text.layers == 2


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file under the folder, and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }
