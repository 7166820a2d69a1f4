"""Tokens as the model would see them, and back: against what the engine is given for the same request."""

from __future__ import annotations

import pytest

FUNCTION = {"type": "function", "function": {"name": "f"}}


async def test_a_conversation_has_the_tokens_that_the_engine_gets(stage, props):
    worker = await stage()
    content = [{"type": "text", "text": "What is it?"}, props.picture_part(), props.picture_part(size=(40, 90))]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    answer = await worker.client.post("/v1/tokenize", json={"model": "tiny", "messages": messages})
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}
    usage = (await worker.client.post("/v1/chat/completions", json=body)).json()["usage"]
    (request,) = worker.engine.requests
    told = answer.json()
    assert answer.status_code == 200
    assert told["tokens"] == list(request.token_ids)
    assert told["count"] == len(request.token_ids) == usage["prompt_tokens"]
    assert told["image_tokens"] == usage["prompt_tokens_details"]["image_tokens"] == told["tokens"].count(259)
    assert told["max_model_len"] == 2048
    assert told["token_strs"] is None


async def test_a_prompt_has_the_tokens_that_the_engine_gets(stage):
    worker = await stage()
    await worker.client.post("/v1/completions", json={"model": "tiny", "prompt": "Grüße <image>", "max_tokens": 1})
    for path in ("/tokenize", "/v1/tokenize"):
        answer = await worker.client.post(path, json={"model": "tiny", "prompt": "Grüße <image>"})
        assert answer.json()["tokens"] == list(worker.engine.requests[0].token_ids)
    empty = await worker.client.post("/tokenize", json={"model": "tiny", "prompt": ""})
    assert (empty.json()["count"], empty.json()["tokens"]) == (0, [])


async def test_a_prompt_longer_than_the_context_is_still_counted(stage):
    worker = await stage()
    answer = (await worker.client.post("/tokenize", json={"model": "tiny", "prompt": "x" * 5000})).json()
    assert (answer["count"], answer["max_model_len"]) == (5000, 2048)


async def test_tokens_are_put_back_into_their_text(stage):
    worker = await stage()
    messages = [{"role": "user", "content": "Grüße"}]
    asked = {"model": "tiny", "messages": messages, "return_token_strs": True}
    told = (await worker.client.post("/tokenize", json=asked)).json()
    assert told["token_strs"][0] == "<|im_start|>"
    assert len(told["token_strs"]) == told["count"]
    back = await worker.client.post("/detokenize", json={"model": "tiny", "tokens": told["tokens"]})
    assert back.json() == {"prompt": "<|im_start|>user\nGrüße<|im_end|>\n<|im_start|>assistant\n"}
    assert (await worker.client.post("/v1/detokenize", json={"model": "tiny", "tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "model"),
        ("/tokenize", {"model": "tiny"}, 400, None),
        ("/tokenize", {"model": "tiny", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}, 400, None),
        ("/tokenize", {"model": "tiny", "prompt": "x", "tools": [FUNCTION]}, 400, None),
        ("/tokenize", {"model": "tiny", "prompt": 5}, 400, "prompt"),
        ("/tokenize", {"model": "tiny", "prompt": "x", "chat_template": "{{ x }}"}, 400, "chat_template"),
        ("/tokenize", {"model": "other", "prompt": "x"}, 404, None),
        ("/detokenize", {"model": "tiny", "tokens": [320]}, 400, "tokens"),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "tiny", "tokens": "abc"}, 400, "tokens"),
        ("/detokenize", {"model": "other", "tokens": []}, 404, None),
    ],
)  # fmt: skip
async def test_what_cannot_be_tokenized_is_told_by_its_field(stage, path, body, status, param):
    worker = await stage()
    answer = await worker.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_a_picture_that_cannot_be_read_is_named(stage, props):
    worker = await stage()
    broken = {"type": "image_url", "image_url": {"url": props.data_url(b"nothing")}}
    answer = await worker.client.post(
        "/tokenize", json={"model": "tiny", "messages": [{"role": "user", "content": [broken]}]}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0].image_url"
