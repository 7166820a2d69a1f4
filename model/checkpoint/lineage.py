"""What a checkpoint was made of: the directories that went into it, by names that outlive their place on a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.checkpoint.files import read_json_if_there
from model.checkpoint.manifest import MANIFEST

Role = Literal["source", "base", "vision tower"]


@dataclass(frozen=True)
class Origin:
    """One directory. `version` is its manifest's; `revision` the commit, where it lay in a Hugging Face cache."""

    role: Role
    name: str
    version: str | None = None
    revision: str | None = None

    @property
    def identity(self) -> str:
        """As exact as can be told."""
        return self.version or (f"{self.name}@{self.revision}" if self.revision else self.name)

    def as_json(self) -> dict[str, Any]:
        told = {"role": self.role, "name": self.name, "version": self.version, "revision": self.revision}
        return {field: value for field, value in told.items() if value is not None}


def parent_of(origins: Sequence[Origin]) -> str | None:
    """The checkpoint that another's language model comes from: its base, or else a source that has a version."""
    parents = [origin for origin in origins if origin.role == "base"]
    parents += [origin for origin in origins if origin.role == "source" and origin.version is not None]
    return parents[0].identity if parents else None


def origin(role: Role, directory: Path) -> Origin:
    version = read_json_if_there(directory / MANIFEST).get("version")
    path = directory.absolute()
    return Origin(
        role,
        repository_name(directory),
        version if isinstance(version, str) else None,
        path.name if path.parent.name == "snapshots" else None,
    )


def repository_name(directory: Path) -> str:
    """The directory's name; in a Hugging Face cache, where that is a digest, the repository's."""
    path = directory.absolute()
    return path.parent.parent.name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name
