"""The OpenAPI document says what the controller does: every route is in it, and its examples work as they stand."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis

from server.app import create_app

ROOT = Path(__file__).parents[2]
SECRET = "the-workers-secret"
KEYS = {"ApiKey": "a-clients-key", "AdminKey": "the-admin-key", "WorkerSecret": SECRET}

# Codes that only a controller sees of its workers.
BETWEEN_US = {"continuation_refused", "version_mismatch", "timeout"}
# What a route's own way of writing its path is called in the document.
SPELLINGS = {"/v1/models/{model:path}": "/v1/models/{model}", "/assets": "/assets/{path}"}


@pytest.fixture
async def client(start_controller: Any) -> Any:
    return await start_controller(api_keys=(KEYS["ApiKey"],), admin_key=KEYS["AdminKey"])


@pytest.fixture
async def document(client: Any) -> dict[str, Any]:
    status, document = await client.get("/openapi.json")
    assert status == 200
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def leaves(routes: Any) -> Iterator[Any]:
    """Every single route, those of included routers with it."""
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from [route] if included is None else leaves(included.routes)


async def test_every_route_is_in_the_document(client, document):
    front: Any = create_app(client.controller)
    served = set()
    for route in leaves(front._app.routes):
        path = SPELLINGS.get(route.path, route.path)
        served |= {(method, path) for method in getattr(route, "methods", None) or {"GET"} if method != "HEAD"}
    assert served == {(method, path) for method, path, _ in operations(document)}


async def test_the_document_is_openapi(document):
    schemathesis.openapi.from_dict(document).validate()
    identifiers = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(identifiers)) == len(identifiers)


async def test_every_operation_says_who_may_ask_what_it_refuses_and_which_headers_there_are(document):
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        asked = {parameter.get("$ref", "").rpartition("/")[2] for parameter in operation["parameters"]}
        assert "X-Request-Id" in asked, where
        assert operation["security"], where
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"], (where, status)
            if int(status) >= 400:
                (content,) = response["content"].values()
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}, (where, status)
                codes = response["x-error-codes"]
                assert codes and len(set(codes)) == len(codes), (where, status)
                assert all(f"`{code or 'null'}`" in response["description"] for code in codes), (where, status)
        if path.startswith("/v1/") and method == "POST":
            assert {"X-Request-Timeout", "X-Session-Id", "X-Model-Version"} <= asked, where
            for status in ("200", "400", "429"):
                assert "x-ratelimit-remaining-requests" in operation["responses"][status]["headers"], (where, status)
            for status in ("429", "503"):
                assert "Retry-After" in operation["responses"][status]["headers"], (where, status)


def test_every_code_that_is_given_is_in_the_document_and_in_the_docs():
    from server.api.openapi import refusals

    known = {
        one.code
        for group in vars(refusals).values()
        for one in (group if isinstance(group, tuple) else [group])
        if isinstance(one, refusals.Refusal)
    }
    given = set(codes_in("server")) | set(codes_in("worker")) - BETWEEN_US
    assert given - known == set()
    docs = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {code for code in known if code and f"`{code}`" not in docs} == set()


def codes_in(package: str) -> Iterator[str]:
    """The constants that are given to `code=`."""
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                value = keyword.value
                if keyword.arg == "code" and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


async def test_the_docs_show_every_route(document):
    docs = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [f"{method} {path}" for method, path, _ in operations(document) if f"`{method} {path}`" not in docs] == []


async def test_examples_work_as_they_stand(client, document, start_worker, answer_as_documented, check_documented):
    worker = await start_worker("worker-1", client)
    worker.handler = answer_as_documented
    sent = 0
    for method, path, operation in operations(document):
        for parameter in operation["parameters"]:
            if parameter.get("in") == "path":
                path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
        (scheme,) = operation["security"][0] or [""]
        headers = {"Authorization": f"Bearer {KEYS[scheme]}"} if scheme else {}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in body.get("examples", {"": {"value": None}}).values():
            async with client.session.request(
                method, client.url + path, json=example["value"], headers=headers
            ) as answer:
                text = await answer.text()
                assert answer.status in (200, 204), (method, path, text)
                described = operation["responses"][str(answer.status)]
                sent += 1
                if answer.status == 204:
                    continue
                content = described["content"]
                if answer.content_type == "application/json":
                    check_documented(document, content["application/json"]["schema"], await answer.json())
                elif answer.content_type == "text/event-stream":
                    *chunks, done = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
                    end, piece = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"]
                    assert chunks and done == end["const"]
                    for chunk in chunks:
                        check_documented(document, piece["contentSchema"], json.loads(chunk))
                else:
                    assert answer.content_type in content or "*/*" in content, (path, answer.content_type)
    assert sent > 30
    assert len(worker.bodies) > 15


async def test_methods_that_are_not_in_the_document_are_refused_with_those_that_are(client, document):
    for path, methods in document["paths"].items():
        declared = {method.upper() for method in methods}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - declared:
            url = client.url + path.replace("{", "").replace("}", "")
            async with client.session.request(method, url, headers={"Content-Type": "application/json"}) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (405, "method_not_allowed"), (
                    method,
                    path,
                )
                assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == declared, (method, path)


async def test_examples_of_answers_are_of_the_shapes_that_stand_beside_them(document, check_documented):
    checked = 0
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                if "example" in content:
                    check_documented(document, content["schema"], content["example"])
                    checked += 1
    assert checked >= 6


async def test_all_that_admin_tells_is_in_the_document(client, document, start_worker, check_documented):
    await start_worker("worker-1", client)
    lost = await start_worker("worker-2", client)
    await lost.leave()
    await client.chat(headers={"Authorization": f"Bearer {KEYS['ApiKey']}"})
    await client.chat(model="nobody", headers={"Authorization": f"Bearer {KEYS['ApiKey']}"})
    told = {}
    for path, shape in (("workers", "Workers"), ("stats?window=900", "Statistics")):
        status, told[shape] = await client.get(f"/admin/{path}", {"Authorization": f"Bearer {KEYS['AdminKey']}"})
        assert status == 200
        check_documented(document, {"$ref": f"#/components/schemas/{shape}"}, told[shape])
    assert told["Workers"]["workers"]
    assert all(told["Statistics"][name] for name in ("recent", "slowest", "errors"))


async def test_a_window_that_is_not_kept_is_refused_as_the_document_says(client, document):
    stats = document["paths"]["/admin/stats"]["get"]
    (window,) = [parameter for parameter in stats["parameters"] if parameter.get("in") == "query"]
    assert not window["required"]
    for asked in (61, "soon"):
        headers = {"Authorization": f"Bearer {KEYS['AdminKey']}"}
        status, body = await client.get(f"/admin/stats?{window['name']}={asked}", headers)
        assert status == 400
        assert body["error"]["code"] in stats["responses"]["400"]["x-error-codes"]
        assert body["error"]["param"] == window["name"]


def test_a_field_that_the_document_does_not_have_is_found(document, check_documented):
    shape = {"$ref": "#/components/schemas/WorkerCount"}
    check_documented(document, shape, {"total": 1, "healthy": 1})
    with pytest.raises(jsonschema.ValidationError, match="more"):
        check_documented(document, shape, {"total": 1, "healthy": 1, "more": 1})
