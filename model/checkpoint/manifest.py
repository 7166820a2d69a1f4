"""manifest.json: which version a checkpoint is, and digests of all that it is made of.

A tensor's digest is of its dtype, shape and bytes. They are rolled up to three, one for each part, by which caches and
weight swaps tell what has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checkpoint.names import PARTS, part_of

MANIFEST = "manifest.json"
TEMPLATE = "chat_template.jinja"
_BEHAVIOUR = (".json", ".jinja")
_MAX_NAME = 80


def build_manifest(
    folder: Path,
    digests: Mapping[str, str],
    *,
    name: str,
    source: str,
    parent: str | None = None,
    made_from: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """For a folder that is complete but for its manifest. The version follows from everything that decides answers.

    `source` says in words how the checkpoint was made, `made_from` of what; `parent` is the version, or else the name,
    of the checkpoint that its language model was made from.
    """
    files = {file.name: file for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    sha256 = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if file.suffix in _BEHAVIOUR and not name.endswith(".index.json")
    }
    parts = roll_up_parts(digests)
    return {
        "version": f"{name[:_MAX_NAME]}-{roll_up({**parts, **sha256})[:12]}",
        "parent": parent,
        "recipe": None,
        "source": source,
        "made_from": [dict(origin) for origin in made_from],
        "chat_template": sha256.get(TEMPLATE),
        "parts": parts,
        "tensors": dict(sorted(digests.items())),
        "files": {
            name: {"bytes": file.stat().st_size, **({"sha256": sha256[name]} if name in sha256 else {})}
            for name, file in files.items()
        },
    }


def roll_up_parts(digests: Mapping[str, str]) -> dict[str, str]:
    """Vision tower, connector, language model: one digest each."""
    return {part: roll_up({name: d for name, d in digests.items() if part_of(name) == part}) for part in PARTS}


def roll_up(digests: Mapping[str, str]) -> str:
    """One digest for many named ones."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
