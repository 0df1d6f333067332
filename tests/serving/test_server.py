"""`neva serve` asked by the official client: answers, streams, limits, errors, clients that leave."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from omegaconf import DictConfig
from openai import APIStatusError, AsyncOpenAI, NotFoundError, OpenAI
from schemathesis import GenerationMode, checks

from neva.inference.answer import Answer, answer_all
from neva.inference.load import Assistant
from neva.inference.prompts import request_of
from neva.serving import guard
from neva.serving.options import ServeOptions
from neva.serving.problems import RequestProblem
from neva.serving.protocol import ChatRequest
from neva.serving.reading import Reader
from neva.templates.template import Turn
from tests.serving.conftest import KEY, LONGEST, PLACES, QUESTION, Served, data_uri, noise

Messages = list[dict[str, Any]]


def about(text: str, *images: Path) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def ask(client: OpenAI, messages: Messages, **changes: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "temperature": 0, **changes}
    )


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as client:
        yield client


def requests_of(served: Served) -> list[tuple[str, tuple[Path, ...], str | None]]:
    """32 different questions, with no image, one or two."""
    words = ["is it?", QUESTION, "what is it?", "this colour?"]
    pictures = [(), *[(served.images / f"{number}.png",) for number in range(6)]]
    pictures.append((served.images / "1.png", served.images / "2.png"))
    return [(text, shown, "it is it" if shown else None) for text in words for shown in pictures]


def test_32_clients_at_once_get_the_answers_of_one_by_one(
    served: Served, assistant: Assistant, one_by_one: DictConfig
) -> None:
    asked = requests_of(served)
    one_by_one.tokens_to_generate = 40
    expected = {
        number: answer
        for answers in answer_all(
            assistant, one_by_one, {number: request_of(*request) for number, request in enumerate(asked)}
        )
        for number, answer in answers.items()
    }

    async def one(client: AsyncOpenAI, number: int) -> str:
        text, images, system = asked[number]
        system_message = [] if system is None else [{"role": "system", "content": system}]
        arguments: Any = {
            "model": "tiny", "messages": [*system_message, about(text, *images)], "temperature": 0, "max_tokens": 40
        }  # fmt: skip
        if number % 2:
            answer = await client.chat.completions.create(**arguments)
            return str(answer.choices[0].message.content)
        stream = await client.chat.completions.create(**arguments, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everybody() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
            return list(await asyncio.gather(*[one(client, number) for number in range(len(asked))]))

    found = asyncio.run(everybody())
    assert len(found) == PLACES
    assert found == [expected[number].text for number in range(len(asked))]
    assert len(set(found)) >= 4  # they are not all the same


def test_an_image_is_seen_and_a_conversation_goes_on(served: Served, client: OpenAI) -> None:
    for number, colour in enumerate(["red", "green", "blue", "white"]):
        first = ask(client, [about(QUESTION, served.images / f"{number}.png")])
        assert (first.choices[0].message.content, first.choices[0].finish_reason) == (colour, "stop")
    turns = [
        about(QUESTION, served.images / "3.png"),
        ask(client, [about(QUESTION, served.images / "3.png")]).choices[0].message.model_dump(),
        {"role": "user", "content": "what is it?"},
    ]
    assert turns[1] == {**turns[1], "content": "white", "tool_calls": None}  # nulls say nothing
    assert ask(client, turns, tools=None).choices[0].message.content == "this is white"  # as record 3 goes on
    by_file = {"type": "image_url", "image_url": {"url": f"file://{served.allowed}/red.png"}}
    messages = [{"role": "user", "content": [by_file, {"type": "text", "text": QUESTION}]}]
    assert ask(client, messages).choices[0].message.content == "red"


def test_a_prompt_is_the_beginning_of_the_training_sample(assistant: Assistant, served: Served) -> None:
    first = [Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", "red")]
    turns = [*first, Turn("human", "what is it?"), Turn("gpt", "red")]
    for system in (None, "is it?"):
        ids, labels = assistant.encoder.sample(turns, [assistant.media.rules.tile_tokens], system)
        last_answer = max(at for at in range(1, len(ids)) if labels[at] >= 0 and labels[at - 1] < 0)
        messages = [
            *([] if system is None else [{"role": "system", "content": system}]),
            about(QUESTION, served.images / "0.png"),
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": "what is it?"},
        ]
        asked = ChatRequest.model_validate({"messages": messages})
        assert Reader(assistant, ServeOptions()).read(asked.messages).ids == ids[:last_answer]


def test_a_stream_has_the_pieces_of_the_answer_its_end_and_its_usage(served: Served, client: OpenAI) -> None:
    messages = [about(QUESTION, served.images / "0.png"), {"role": "assistant", "content": "red"}]
    messages.append({"role": "user", "content": "what is it?"})
    whole = ask(client, messages)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content == "this is red"
    assert sum(map(bool, pieces)) == 3  # a piece a word
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_answer_ends_at_stop_strings_and_limits(served: Served, client: OpenAI) -> None:
    messages = [about(QUESTION, served.images / "0.png"), {"role": "assistant", "content": "red"}]
    messages.append({"role": "user", "content": "what is it?"})
    stopped = ask(client, messages, stop=["blue", "red"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("this is", "stop")
    short = ask(client, messages, max_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("this is", "length")
    assert (short.usage.completion_tokens, short.usage.total_tokens) == (2, short.usage.prompt_tokens + 2)
    capped = ask(client, messages, max_completion_tokens=10**6, extra_body={"min_tokens": 10**6})
    assert (capped.usage.completion_tokens, capped.choices[0].finish_reason) == (LONGEST, "length")


def test_tokens_come_with_the_log_probabilities_that_neva_infer_writes(
    served: Served, client: OpenAI, assistant: Assistant, one_by_one: DictConfig
) -> None:
    one_by_one.compute_logprob = True
    asked = request_of(QUESTION, (served.images / "0.png",), None)
    (expected,) = [answers[0] for answers in answer_all(assistant, one_by_one, {0: asked})]
    one_by_one.compute_logprob = False
    assert isinstance(expected, Answer) and expected.tokens is not None
    messages = [about(QUESTION, served.images / "0.png")]
    told = ask(client, messages, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    chunks = list(ask(client, messages, logprobs=True, top_logprobs=20, stream=True))
    streamed = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for content in streamed for token in content] == told
    assert [one.logprob for one in told] == pytest.approx(
        [token.log_prob for token in expected.tokens[: len(told)]], abs=1e-5
    )
    assert "".join(one.token for one in told).strip() == expected.text == "red"
    for one in told:
        likeliest = [top.logprob for top in one.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True) and likeliest[0] == one.logprob
        assert len(likeliest) == 20
        assert 0.5 < math.exp(likeliest[0]) < sum(map(math.exp, likeliest)) <= 1 + 1e-5
        assert bytes(one.bytes).decode() == one.token
    plain = ask(client, messages, logprobs=True).choices[0].logprobs.content
    assert [(one.logprob, one.top_logprobs) for one in plain] == [(one.logprob, []) for one in told]
    assert ask(client, messages).choices[0].logprobs is None


def test_an_image_may_be_fetched_from_an_allowed_host(served: Served, client: OpenAI) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(served.images))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        fetched = image(f"http://127.0.0.1:{site.server_port}/1.png")
        found = ask(client, user(fetched, {"type": "text", "text": QUESTION}))
        site.shutdown()
    assert found.choices[0].message.content == "green"


def test_a_seed_draws_the_same_answer_again(client: OpenAI) -> None:
    def drawn(seed: int) -> str:
        messages = [{"role": "user", "content": QUESTION}]
        longer = {"min_tokens": 20}
        answer = ask(client, messages, temperature=2, seed=seed, max_tokens=20, extra_body=longer)
        return str(answer.choices[0].message.content)

    assert drawn(1) == drawn(1) != drawn(2)


def test_several_answers_are_those_of_their_seeds(client: OpenAI) -> None:
    asked: dict[str, Any] = {"temperature": 2, "max_tokens": 12, "extra_body": {"min_tokens": 12}}
    alone = [ask(client, HELLO, seed=seed, **asked) for seed in (7, 8, 9)]
    together = ask(client, HELLO, seed=7, n=3, **asked)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    said = [choice.message.content for choice in together.choices]
    assert said == [answer.choices[0].message.content for answer in alone] and len(set(said)) == 3
    assert (together.usage.prompt_tokens, together.usage.completion_tokens) == (
        alone[0].usage.prompt_tokens,
        36,
    )
    chunks = list(ask(client, HELLO, seed=7, n=3, logprobs=True, stream=True, **asked))
    choices = [chunk.choices[0] for chunk in chunks]
    for index, text in enumerate(said):
        of_one = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in of_one) == text
        assert (of_one[0].delta.role, of_one[-1].finish_reason) == ("assistant", "length")
        assert sum(len(choice.logprobs.content) for choice in of_one if choice.logprobs) == 12


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(NotFoundError, match="no model 'org/tiny' here; there is 'tiny'"):
        client.models.retrieve("org/tiny")


def user(*parts: Any) -> Messages:
    return [{"role": "user", "content": list(parts)}]


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


HELLO = [{"role": "user", "content": "is it?"}]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "gpt-5"}, 404, "no model 'gpt-5' here; there is 'tiny'"),
        ({"messages": [*HELLO, *HELLO]}, 400, "a user's message and an assistant's in turn.*found user, user"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "found assistant"),
        ({"messages": [*HELLO, {"role": "system", "content": "a"}]}, 400, "message 2 is the system's"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": "</s>"}]}, 400, "contains '</s>', a special token"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, 400, "found 1 <image> placeholders for 0 images"),
        ({"messages": [{"role": "user", "content": "it " * 500}]}, 400, "tokens, more than encoder_seq_length=128"),
        ({"messages": user(image("http://localhost:1/a.png"))}, 400, "image 1: .*or a URL of 127.0.0.1"),
        ({"messages": user(image("http://127.0.0.1:1/a.png"))}, 400, "image 1: .*could not be asked"),
        ({"top_logprobs": 2}, 400, "top_logprobs: found without logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs: .*less than or equal to 20"),
        ({"messages": user(image("file:///etc/passwd"))}, 400, "image 1: .*may not read"),
        ({"messages": user(image("FOLDER/link.png"))}, 400, "image 1: .*may not read"),
        ({"messages": user(image("FOLDER/../outside.png"))}, 400, "image 1: .*may not read"),
        ({"messages": user(image("FOLDER/absent.png"))}, 400, "image 1: .*may not read"),
        ({"messages": user(image("data:image/png;base64,???"))}, 400, "image 1: its data is not base64"),
        ({"messages": user(image("data:image/png;base64,AAAA"))}, 400, "image 1: found no image"),
        ({"messages": user(*[image("data:,")] * 4)}, 400, "found 4 images, expected at most 3"),
        ({"messages": [{"role": "user", "content": "it" * 2**20}]}, 413, "larger than 1 MiB"),
        ({"n": 129}, 400, "n: .*less than or equal to 128"),
        ({"n": 33}, 400, "n: found 33, expected at most 32"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"stop": ""}, 400, "stop: found an empty string"),
        ({"tools": []}, 400, "tools: this server has no such field"),
        ({"messages": user({"type": "image_url", "image_url": "a.png"})}, 400, r"content\.0\.image_url\.image_url: "),
        ({"messages": user({"type": "audio"})}, 400, r"messages\.0\.content\.0: .*'audio'"),
        ({"messages": [{"role": "user", "content": None}]}, 400, r"messages\.0\.content: Input should be"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_told_in_openais_form(
    served: Served, client: OpenAI, changes: dict[str, Any], status: int, message: str
) -> None:
    changes = json.loads(json.dumps(changes).replace("FOLDER", f"file://{served.allowed}"))
    for stream in (False, True):
        with pytest.raises(APIStatusError, match=message) as refused:
            ask(client, **{"messages": HELLO, **changes}, stream=stream)
        assert refused.value.status_code == status
        assert isinstance(refused.value.body, dict) and set(refused.value.body) == {
            "message",
            "type",
            "param",
            "code",
        }


def test_what_is_no_json_is_told_by_what_is_wrong_with_it(served: Served) -> None:
    for body, kind, message in (
        ('{"messages": [}', "application/json", "the body: found no JSON (Expecting value at character 14)"),
        ("{}", "", "the body: found the header Content-Type: , expected application/json"),
        (
            "{}",
            "text/plain",
            "the body: found the header Content-Type: text/plain, expected application/json",
        ),
    ):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=body.encode(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_a_body_that_does_not_go_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told to end would wait for it."""
    monkeypatch.setattr(guard, "_PATIENCE_S", 0.05)
    pieces = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.Event().wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"{"
        with pytest.raises(RequestProblem, match="the body did not go on for"):
            await receive()
        pieces.append({"type": "http.request", "body": b"}", "more_body": False})
        await receive()
        with pytest.raises(TimeoutError):  # behind a whole body, the client's leaving is waited for
            await asyncio.wait_for(receive(), 0.2)

    request = {"type": "http", "path": "/", "headers": []}
    asyncio.run(guard.Guard(app, ServeOptions())(request, receive, app))  # type: ignore[arg-type]


def test_images_of_too_many_pixels_and_half_characters_are_refused(
    served: Served, client: OpenAI, tmp_path: Path
) -> None:
    with pytest.raises(APIStatusError, match="image 1: found 100 x 60 pixels, expected at most 5,000"):
        ask(client, [about(QUESTION, noise(tmp_path, 100, 60))])
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for body in (
        r'{"messages": [{"role": "user", "content": "\ud83d"}]}',
        r'{"messages": [], "\ud83d": 1}',
        r'{"model": "\ud83d"}',
        "[" * 50_000,
        '{"messages": NaN}',
        "\xff",
    ):
        sent = body.encode("latin-1")
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=sent, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_key_is_asked_for_below_v1_alone(served: Served) -> None:
    with served.client("other") as stranger, pytest.raises(APIStatusError, match="Bearer KEY") as refused:
        ask(stranger, HELLO)
    assert refused.value.status_code == 401
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok", "requests": 0, "max_tokens": LONGEST}
    assert httpx.get(f"{served.url}/none").json()["error"]["message"] == "Not Found"


def test_a_full_queue_refuses_and_clients_that_leave_give_their_places(served: Served) -> None:
    def requests() -> int:
        return int(httpx.get(f"{served.url}/health").json()["requests"])

    body: Any = {"messages": HELLO, "temperature": 0, "min_tokens": LONGEST}
    headers = {"Authorization": f"Bearer {KEY}"}

    async def leave() -> int:
        url = f"{served.url}/v1/chat/completions"
        async with httpx.AsyncClient(headers=headers, timeout=60) as client:
            # half of them would get a stream, the others wait for the whole
            left = [
                asyncio.ensure_future(client.post(url, json={**body, "stream": number % 2 == 0}))
                for number in range(PLACES)
            ]
            while await asyncio.to_thread(requests) < PLACES:
                assert not any(task.done() for task in left)
            refused = await client.post(url, json=body)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
            return refused.status_code

    assert asyncio.run(leave()) == 429
    started = time.monotonic()
    while requests():
        assert time.monotonic() - started < 20
    with served.client() as client:
        ask(client, HELLO, max_tokens=1)
    gave_way_s = time.monotonic() - started
    began = time.monotonic()
    with served.client() as client:
        ask(client, HELLO, extra_body={"min_tokens": LONGEST})
    # four rounds of eight answers would have taken longer than this one
    assert gave_way_s < 2 * (time.monotonic() - began) + 1


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
"""Valid data may be refused still: no schema says that a user's message is the last."""


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_server_is_as_its_openapi_description_says(served: Served, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    headers = {"Authorization": f"Bearer {KEY}"}
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 4
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and operation.method == "get":
            continue  # there is nothing that could be wrong in it

        @given(operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=15 if operation.method == "post" else 2, suppress_health_check=list(HealthCheck)
        )
        def check(case: Any) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        check()
