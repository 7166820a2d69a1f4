"""API keys of a file: who gets in, with which models, and how the file changes under a running controller."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from server.auth.keys_file import KeysFileError, new_key, read_entries, revoke_key
from server.controller import Controller
from server.protocol.errors import ApiError
from server.protocol.flags import SettingsError
from server.settings import Settings

SHA = "0" * 64


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


async def test_a_key_of_the_file_opens_and_no_other_does(start_controller, start_worker, file):
    key = new_key(file, "acme")
    client = await start_controller(keys_file=str(file))
    worker = await start_worker("w1", client)
    assert (await client.chat("hi", headers=bearer(key)))[0] == 200
    for headers in ({}, bearer("tk-wrong"), bearer(read_entries(file)[0].sha256), {"Authorization": f"Basic {key}"}):
        status, body, _ = await client.chat("hi", headers=headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert len(worker.bodies) == 1
    assert client.controller.stats.recent[0].key == "acme"


async def test_keys_of_the_command_line_and_of_the_file_open_side_by_side(start_controller, start_worker, file):
    key = new_key(file, "acme")
    client = await start_controller(keys_file=str(file), api_keys=("plain",))
    await start_worker("w1", client)
    for one in (key, "plain"):
        assert (await client.chat("hi", headers=bearer(one)))[0] == 200


async def test_an_empty_file_of_keys_opens_to_nobody(start_controller, start_worker, file):
    file.touch()
    client = await start_controller(keys_file=str(file))
    await start_worker("w1", client)
    assert (await client.chat("hi"))[0] == 401
    assert (await client.get("/v1/models"))[0] == 401


async def test_a_key_sees_and_uses_its_models_only(start_controller, start_worker, file):
    key = new_key(file, "acme", models=("demo", "text-*"))
    client = await start_controller(keys_file=str(file))
    for number, name in enumerate(("demo", "text-1", "secret")):
        await start_worker(f"w{number}", client, name=name)
    _, models = await client.get("/v1/models", bearer(key))
    assert [model["id"] for model in models["data"]] == ["demo", "text-1"]
    assert (await client.get("/v1/models/text-1", bearer(key)))[0] == 200
    for name in ("secret", "does-not-exist", "demo2", "Demo"):
        status, body, _ = await client.chat("hi", model=name, headers=bearer(key))
        assert (status, body["error"]["code"]) == (403, "model_not_allowed")
        status, body = await client.get(f"/v1/models/{name}", bearer(key))
        assert (status, body["error"]["code"]) == (403, "model_not_allowed")
    assert (await client.chat("hi", model="demo", headers=bearer(key)))[0] == 200


async def test_a_key_that_is_revoked_is_refused_without_a_restart(start_controller, start_worker, file, until):
    first, second = new_key(file, "acme"), new_key(file, "other")
    client = await start_controller(keys_file=str(file))
    await start_worker("w1", client)
    assert (await client.chat("hi", headers=bearer(first)))[0] == 200
    revoke_key(file, "acme")
    third = new_key(file, "late")
    await until(lambda: _opens(client, third))
    status, body, headers = await client.chat("hi", headers=bearer(first))
    assert (status, body["error"]["code"]) == (401, "api_key_revoked")
    assert headers["WWW-Authenticate"] == "Bearer"
    for key in (second, third):
        assert (await client.chat("hi", headers=bearer(key)))[0] == 200


async def test_a_key_that_is_too_old_is_told_so(start_controller, start_worker, file):
    file.write_text(f'{{"name": "old", "sha256": "{_sha("tk-old")}", "expires": "2020-01-01T00:00:00Z"}}\n')
    client = await start_controller(keys_file=str(file))
    await start_worker("w1", client)
    status, body, _ = await client.chat("hi", headers=bearer("tk-old"))
    assert (status, body["error"]["code"]) == (401, "api_key_expired")


async def test_a_file_that_breaks_leaves_the_last_good_keys(start_controller, start_worker, file, until):
    key = new_key(file, "acme")
    client = await start_controller(keys_file=str(file))
    await start_worker("w1", client)
    assert await client.metric("keys_valid") == 1
    whole = file.read_text()
    file.write_text(whole + "{not json}\n")
    await until(lambda: client.controller.metrics.registry.get_sample_value("tephra_controller_keys_valid") == 0)
    assert (await client.chat("hi", headers=bearer(key)))[0] == 200
    file.write_text(whole)
    os.utime(file, (1, 1))
    await until(lambda: client.controller.metrics.registry.get_sample_value("tephra_controller_keys_valid") == 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2"),
        ('{"name": "b"}', "sha256"),
        (f'{{"name": "b c", "sha256": "{SHA}"}}', "name"),
        (f'{{"name": "b", "sha256": "{SHA[:-1]}"}}', "sha256"),
        (f'{{"name": "a", "sha256": "{SHA}"}}', "'a'"),
        (f'{{"name": "b", "sha256": "{"1" * 64}"}}', "the same key"),
        (f'{{"name": "b", "sha256": "{SHA}", "request_per_minute": 5}}', "request_per_minute"),
        (f'{{"name": "b", "sha256": "{SHA}", "concurrent": 0}}', "concurrent"),
        (f'{{"name": "b", "sha256": "{SHA}", "tokens_per_minute": "5"}}', "tokens_per_minute"),
        (f'{{"name": "b", "sha256": "{SHA}", "expires": "soon"}}', "expires"),
        (f'{{"name": "b", "sha256": "{SHA}", "expires": "2030-01-01T00:00:00"}}', "expires"),
        (f'{{"name": "b", "sha256": "{SHA}", "tenant": "a:b"}}', "tenant"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_by_its_number_and_field(file, line, words):
    file.write_text(f'{{"name": "a", "sha256": "{"1" * 64}"}}\n{line}\n')
    with pytest.raises(KeysFileError, match="line 2") as caught:
        read_entries(file)
    assert words in str(caught.value)
    with pytest.raises(SettingsError, match="--keys-file"):
        Controller(Settings(redis_url="redis://127.0.0.1:1/0", keys_file=str(file)))


def test_a_file_that_is_not_there_is_told_before_anything_starts(tmp_path):
    with pytest.raises(SettingsError, match="nowhere"):
        Controller(Settings(redis_url="redis://127.0.0.1:1/0", keys_file=str(tmp_path / "nowhere.jsonl")))


def test_the_command_line_makes_lists_and_revokes_keys_and_shows_a_key_once(file):
    def tephra(*arguments: str):
        return CliRunner().invoke(app, ["keys", *arguments, "--keys-file", str(file)])

    made = tephra("new", "acme", "--model", "demo*", "--tokens-per-minute", "50000", "--expires-days", "3")
    assert made.exit_code == 0, made.output
    key = made.stdout.split()[0]
    assert key.startswith("tk-")
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    (entry,) = read_entries(file)
    assert (entry.sha256, entry.models, entry.tokens_per_minute) == (_sha(key), ("demo*",), 50000)
    again = tephra("new", "acme")
    assert again.exit_code == 1
    assert "acme" in again.output
    assert len(read_entries(file)) == 1
    listed = tephra("list").output
    assert "demo*" in listed
    assert "50,000 tokens/min" in listed
    assert key not in listed
    assert tephra("revoke", "acme").exit_code == 0
    assert read_entries(file)[0].disabled
    assert "revoked" in tephra("list").output
    assert tephra("revoke", "nobody").exit_code == 1
    assert tephra("new", "no good").exit_code == 1


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _opens(client, key: str) -> bool:
    try:
        client.controller.client_auth.check([(b"authorization", f"Bearer {key}".encode())])
    except ApiError:
        return False
    return True
