"""Chat completions and completions through HTTP, on an engine that plays a script."""

from __future__ import annotations

import json
from typing import Any

from server.protocol.openai import ChatCompletion, ChatCompletionChunk, Completion, ModelList


def frames(body: str) -> list[Any]:
    """The events of a stream; the last must be [DONE]."""
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def test_an_answer_has_the_documented_shape_and_counts_its_tokens(stage: Any, props: Any) -> None:
    worker = await stage(props.say("A red cat."))
    response = await worker.chat("What is it?")
    answer = ChatCompletion.model_validate_json(response.content)
    assert answer.choices[0].message.content == "A red cat."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.system_fingerprint == "v1"
    assert answer.usage.completion_tokens == len("A red cat.") + 1  # the end token is drawn too
    assert answer.usage.prompt_tokens == len(worker.engine.requests[0].token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert response.headers["x-request-id"]


async def test_a_stream_begins_with_the_role_ends_with_reason_usage_and_done(stage: Any, props: Any) -> None:
    worker = await stage(props.say("Grün 🙂"))
    response = await worker.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [ChatCompletionChunk.model_validate(frame) for frame in frames(response.text)]
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events[:-1]) == "Grün 🙂"
    assert "\ufffd" not in response.text
    assert [e.choices[0].finish_reason for e in events[:-1] if e.choices[0].finish_reason] == ["stop"]
    assert events[-1].choices == [] and events[-1].usage is not None
    assert events[-1].usage.completion_tokens == len("Grün 🙂".encode()) + 1
    assert {(e.id, e.created, e.model, e.system_fingerprint) for e in events} == {
        (events[0].id, events[0].created, "tiny", "v1")
    }


async def test_usage_is_streamed_only_when_asked_for(stage: Any) -> None:
    worker = await stage()
    assert all("usage" not in frame for frame in frames((await worker.chat(stream=True)).text))


async def test_a_stop_string_across_tokens_ends_the_answer_and_cancels_the_engine(stage: Any, props: Any) -> None:
    worker = await stage(props.say("one, two, three, four"))
    answer = (await worker.chat(stop=[", th", "zebra"])).json()
    assert answer["choices"][0]["message"]["content"] == "one, two"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert worker.engine.cancelled == [worker.engine.requests[0].id]
    streamed = frames((await worker.chat(stop=", th", stream=True)).text)
    assert "".join(f["choices"][0]["delta"].get("content", "") for f in streamed) == "one, two"


async def test_max_tokens_ends_with_length_and_defaults_to_what_the_context_leaves(stage: Any, props: Any) -> None:
    worker = await stage(props.say("abcdef"), default_max_tokens=5000)
    answer = (await worker.chat(max_tokens=3)).json()
    assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("abc", "length")
    await worker.chat()
    request = worker.engine.requests[-1]
    assert request.sampling.max_tokens == worker.engine.context_length - len(request.token_ids)
    await worker.chat(max_tokens=9, max_completion_tokens=2)
    assert worker.engine.requests[-1].sampling.max_tokens == 2


async def test_a_picture_asked_about_again_is_decoded_once_for_each_salt(stage: Any, props: Any) -> None:
    worker = await stage(props.say("yes"))
    content = [props.picture_part(), {"type": "text", "text": "what?"}]
    for salt in (None, None, "tenant", "tenant"):
        await worker.chat(content, cache_salt=salt)
    pictures = [request.images[0] for request in worker.engine.requests]
    assert pictures[0] is pictures[1]
    assert pictures[2] is pictures[3]
    assert pictures[0] is not pictures[2]
    assert [request.cache_salt for request in worker.engine.requests] == ["", "", "tenant", "tenant"]
    refused = await worker.chat(content, cache_salt="")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "cache_salt"


async def test_n_answers_have_their_own_seeds_and_share_the_prepared_images(stage: Any, props: Any) -> None:
    worker = await stage(lambda request: props.say(f"seed {request.sampling.seed}")(request))
    content = [props.picture_part(), {"type": "text", "text": "what?"}]
    answer = (await worker.chat(content, n=3, seed=7)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["seed 7", "seed 8", "seed 9"]
    first, second, third = worker.engine.requests
    assert first.images[0] is second.images[0] is third.images[0]
    assert answer["usage"]["prompt_tokens"] == len(first.token_ids)
    assert answer["usage"]["completion_tokens"] == 3 * len("seed 7.")
    streamed = frames((await worker.chat(n=2, seed=7, stream=True)).text)
    texts = ["", ""]
    for choice in (frame["choices"][0] for frame in streamed):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["seed 7", "seed 8"]
    order = [frame["choices"][0]["index"] for frame in streamed]
    assert order != sorted(order), "the answers of one request must come interleaved"


async def test_without_a_seed_each_request_draws_its_own(stage: Any) -> None:
    worker = await stage()
    for _ in range(2):
        await worker.chat()
    first, second = (request.sampling.seed for request in worker.engine.requests)
    assert first != second


async def test_sampling_fields_reach_the_engine(stage: Any) -> None:
    worker = await stage()
    fields: dict[str, Any] = {
        "temperature": 0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": -1,
        "repetition_penalty": 1.2, "logit_bias": {"65": -100}, "stop_token_ids": [10], "min_tokens": 2, "seed": -1,
        "max_tokens": 20,
    }  # fmt: skip
    assert (await worker.chat(**fields)).status_code == 200
    sampling = worker.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.9, 5, 0.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0.5, -1, 1.2)
    assert sampling.logit_bias == {65: -100}
    assert (sampling.min_tokens, sampling.seed) == (2, 2**64 - 1)
    assert sampling.stop_token_ids == {10, 258}
    assert (await worker.chat(ignore_eos=True, max_tokens=3)).status_code == 200
    assert worker.engine.requests[1].sampling.stop_token_ids == frozenset()


async def test_logprobs_name_the_bytes_of_each_token_and_its_rivals(stage: Any, props: Any) -> None:
    worker = await stage(props.say("é!"))
    answer = ChatCompletion.model_validate((await worker.chat(logprobs=True, top_logprobs=2)).json())
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "é!"
    assert [rival.token for rival in content[2].top_logprobs] == ["!", '"']
    streamed = frames((await worker.chat(logprobs=True, stream=True)).text)
    scored = [f["choices"][0]["logprobs"]["content"] for f in streamed if f["choices"][0]["logprobs"]]
    assert [entry["token"] for group in scored for entry in group] == [entry.token for entry in content]
    assert (await worker.chat()).json()["choices"][0]["logprobs"] is None


async def test_completions_continue_raw_prompts_each_with_its_own_answers(stage: Any, props: Any) -> None:
    worker = await stage(lambda request: props.say(props.tokenizer.decode(request.token_ids).upper())(request))
    body = {"model": "tiny", "prompt": ["ab", "cd"], "n": 2, "max_tokens": 9, "logprobs": 1}
    answer = Completion.model_validate((await worker.client.post("/v1/completions", json=body)).json())
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "AB"), (1, "AB"), (2, "CD"), (3, "CD")]
    assert answer.usage is not None and answer.usage.prompt_tokens == 4
    scores = answer.choices[2].logprobs
    assert scores is not None
    assert (scores.tokens, scores.text_offset, scores.token_logprobs) == (["C", "D"], [0, 1], [-0.5, -0.5])
    assert scores.top_logprobs == [{"C": -0.5}, {"D": -0.5}]


async def test_completions_stream_and_stop_after_16_tokens_unless_told_otherwise(stage: Any, props: Any) -> None:
    worker = await stage(props.say("x" * 40))
    body = {"model": "tiny", "prompt": "p", "stream": True}
    streamed = frames((await worker.client.post("/v1/completions", json=body)).text)
    chunks = [Completion.model_validate(frame) for frame in streamed]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "x" * 16
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_developer_messages_reach_the_template_as_system(stage: Any) -> None:
    worker = await stage()
    answers = []
    for role in ("developer", "system"):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "hi"}]
        answers.append(await worker.client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages}))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert worker.engine.requests[0].token_ids == worker.engine.requests[1].token_ids


async def test_models_tell_name_version_context_and_sight(stage: Any) -> None:
    worker = await stage(max_images=5)
    listed = ModelList.model_validate((await worker.client.get("/v1/models")).json())
    (entry,) = listed.data
    assert (entry.id, entry.version, entry.max_model_len) == ("tiny", "v1", 2048)
    assert (entry.capabilities.vision, entry.capabilities.max_images) == (True, 5)
    assert (await worker.client.get("/v1/models/tiny")).json() == entry.model_dump()


async def test_the_openapi_document_describes_the_hot_routes(stage: Any) -> None:
    worker = await stage()
    document = (await worker.client.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/ChatCompletionRequest")
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert {"400", "401", "413", "429", "503"} <= set(chat["responses"])
    assert {"/v1/completions", "/v1/models", "/health/live", "/health/ready", "/metrics"} <= set(document["paths"])
