"""Conversations about a scan, with the official client of OpenAI."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from mindllm.serve import worker
from mindllm.serve.services import Services
from tests.serve.serving import ALICE, TRIAL, RunningServer, ask, make_model, running, scan_files


def test_the_official_client_streams_two_turns_about_an_uploaded_scan(
    server: RunningServer, tiny_store: Store, real_reader: None
) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    with server.http() as http:
        sent = http.post("/v1/scans", files=scan_files(tiny_store.masker("sub-01")))
    assert sent.status_code == 201, sent.text
    messages = ask({"scan": sent.json()["id"], "volume": 3})["messages"]
    for question in (None, "Are you sure?"):
        if question is not None:
            messages.append({"role": "user", "content": question})
        text, finish, chunks = "", None, []
        for chunk in client.chat.completions.create(
            model="tiny", messages=messages, stream=True, max_tokens=12,
            stream_options={"include_usage": True},
        ):  # fmt: skip
            chunks.append(chunk)
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        assert finish in ("stop", "length")
        assert chunks[-1].usage.total_tokens > chunks[-1].usage.completion_tokens > 0
        assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
        last = next(c for c in chunks if c.choices and c.choices[0].finish_reason)
        assert 0 < last.mindllm["probability"] < 1
        assert len(last.mindllm["shuffled"]["values"]) == 9
        complete = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
        assert complete.choices[0].message.content == text
        assert complete.choices[0].finish_reason == finish
        messages.append({"role": "assistant", "content": text})


def test_an_answer_is_what_the_model_decodes(
    server: RunningServer, served_model: MindLLM, tiny_store: Store
) -> None:
    masker = tiny_store.masker("sub-01")
    betas = tiny_store.betas("sub-01", [2], standardize=True)
    expected = served_model.decode(betas, masker, "What is it?", max_new_tokens=16)[0]
    answer = server.openai().chat.completions.create(
        **ask(TRIAL, max_completion_tokens=16, extra_body={"mindllm": {"alternatives": 2}})
    )
    assert answer.choices[0].message.content == expected
    said = answer.mindllm
    tokens = served_model.encode(betas, masker)
    conversation = served_model.build_conversation("What is it?", expected)
    ratio = served_model.log_likelihood_ratio(tokens, [conversation])
    assert said["log_likelihood_ratio"] == pytest.approx(float(ratio), abs=1e-3)
    texts = [*(served_model.model_card.answers or {}), expected]
    evidence = served_model.evidence(betas, masker, texts)[0]
    assert said["evidence"] == pytest.approx(float(evidence[-1]), abs=1e-4)
    assert said["probability"] == pytest.approx(float(evidence.softmax(0)[-1]), abs=1e-4)
    best = evidence[:-1].argsort(descending=True)[:2].tolist()
    assert [a["text"] for a in said["alternatives"]] == [texts[i] for i in best]
    stimuli = tiny_store.trials("sub-01")["stimulus"]
    others = [i for i in range(len(stimuli)) if stimuli[i] != stimuli[2]]
    shuffled = served_model.evidence(
        tiny_store.betas("sub-01", others, standardize=True), masker, [expected]
    )
    torch.testing.assert_close(
        torch.tensor(said["shuffled"]["values"]),
        shuffled[:, 0].sort().values.float(), atol=1e-3, rtol=1e-3,
    )  # fmt: skip
    assert said["missing"] == []


def test_abstention_follows_the_request(server: RunningServer) -> None:
    for threshold in (0.0, 1.0):
        body = ask(TRIAL, max_tokens=6, extra_body={"mindllm": {"abstain_below": threshold}})
        said = server.openai().chat.completions.create(**body).mindllm
        assert said["abstained"] is (threshold == 1.0)
        assert said["abstain_below"] == threshold


def test_a_model_without_encoding_model_says_what_it_cannot_say(
    tiny_llm_folder: Path, tiny_store: Store
) -> None:
    model = make_model(tiny_llm_folder, tiny_store, with_evidence=False)
    with running(model, tiny_store) as server:
        said = server.openai().chat.completions.create(**ask(TRIAL, max_tokens=4)).mindllm
        assert said["log_likelihood_ratio"] is not None
        missing = {item["name"]: item["reason"] for item in said["missing"]}
        assert set(missing) == {
            "evidence", "probability", "alternatives", "shuffled", "abstained",
        }  # fmt: skip
        assert all(said[name] is None for name in missing)
        assert "no encoding model" in missing["evidence"]
        with server.http() as http:
            body = {"model": "tiny", "fmri": TRIAL, "texts": ["a dog"]}
            answer = http.post("/v1/evidence", json=body)
            assert answer.json()["error"]["code"] == "no_encoding_model"
            assert (
                http.get("/v1/models").json()["data"][0]["mindllm"]["has_encoding_model"] is False
            )


FMRI = {"type": "fmri", "fmri": TRIAL}
V9 = {"atlas": "visual", "parcel": "V9"}
OTHER = {"type": "fmri", "fmri": {"subject": "sub-01", "trial": 3}}
TEXT = {"type": "text", "text": "What?"}
USER = {"role": "user", "content": [TEXT, FMRI]}
ASSISTANT = {"role": "assistant", "content": "a dog"}
BAD: dict[str, tuple[dict, int, str]] = {
    "no scan": ({"messages": [{"role": "user", "content": "hello"}]}, 400, "no_scan"),
    "two scans": ({"messages": [{"role": "user", "content": [FMRI, OTHER]}]}, 400, "several_scans"),
    "scan of the assistant": (
        {"messages": [USER, {"role": "assistant", "content": [FMRI]}, USER]}, 400, "misplaced_scan",
    ),
    "placeholder": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "<fMRI>"}, FMRI]}]},
        400, "placeholder_in_text",
    ),
    "nothing asked": ({"messages": [USER, ASSISTANT]}, 400, "no_question"),
    "two questions": ({"messages": [USER, {"role": "user", "content": "?"}]}, 400, "invalid_input"),
    "too long": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 3000}, FMRI]}]},
        400, "invalid_input",
    ),
    "other model": ({"model": "gpt-4"}, 404, "model_not_found"),
    "unknown field": ({"tools": []}, 400, "invalid_request"),
    "n": ({"n": 2}, 400, "invalid_request"),
    "text as number": ({"max_tokens": "7"}, 400, "invalid_request"),
    "two limits": ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "conflicting_limits"),
    "many tokens": ({"max_tokens": 10**6}, 400, "limit_too_large"),
    "stream options": ({"stream_options": {"include_usage": True}}, 400, "not_streamed"),
    "unknown subject": (
        {"messages": [{"role": "user", "content": [
            {"type": "fmri", "fmri": {"subject": "sub-99", "trial": 0}}]}]},
        404, "subject_not_found",
    ),
    "unknown trial": (
        {"messages": [{"role": "user", "content": [
            {"type": "fmri", "fmri": {"subject": "sub-01", "trial": 24}}]}]},
        404, "trial_not_found",
    ),
    "unknown region": (
        {"messages": [{"role": "user", "content": [
            {"type": "fmri", "fmri": TRIAL | {"without": [V9]}}]}]},
        404, "region_not_found",
    ),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_errors_are_openais(server: RunningServer, name: str, stream: bool) -> None:
    changed, status, code = BAD[name]
    if name == "stream options" and stream:
        pytest.skip("they are right here")
    with server.http() as http:
        answer = http.post(
            "/v1/chat/completions", json=ask(TRIAL, max_tokens=4, stream=stream) | changed
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_errors_are_those_of_the_official_client(
    server: RunningServer, token_server: RunningServer
) -> None:
    for client, body, kind in (
        (server.openai(), ask(TRIAL, n=3), openai.BadRequestError),
        (server.openai(), ask({"scan": "never-sent"}), openai.NotFoundError),
        (token_server.openai("wrong-token-of-somebody"), ask(TRIAL), openai.AuthenticationError),
    ):
        with pytest.raises(kind):
            client.chat.completions.create(**body)
    answer = token_server.openai(ALICE).chat.completions.create(**ask(TRIAL, max_tokens=3))
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_limits_stop_strings_and_seeds(server: RunningServer) -> None:
    create = server.openai().chat.completions.create
    cut = create(**ask(TRIAL, max_tokens=5))
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 5)
    full = create(**ask(TRIAL, max_tokens=20)).choices[0].message.content
    mark = full[5:8]
    stopped = create(**ask(TRIAL, max_tokens=20, stop=[mark])).choices[0]
    assert stopped.message.content == full.partition(mark)[0].strip()
    assert stopped.finish_reason == "stop"
    sampled = [
        create(**ask(TRIAL, max_tokens=12, temperature=1.5, seed=seed)).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_answers_of_a_batch_are_those_of_each_alone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = server.openai().chat.completions.create
    bodies = [
        ask({"subject": f"sub-0{1 + i % 3}", "trial": i}, f"What{'?' * i}", max_tokens=4 + i)
        for i in range(9)
    ]
    alone = [create(**body) for body in bodies]
    sizes, original = [], worker.answer_requests

    def answer(model: MindLLM, requests: list) -> list:
        sizes.append(len(requests))
        time.sleep(0.2)  # others come meanwhile
        return original(model, requests)

    monkeypatch.setattr(worker, "answer_requests", answer)
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda body: create(**body), bodies))
    assert max(sizes) > 3
    for one, other in zip(alone, together, strict=True):
        assert one.choices == other.choices
        assert one.usage == other.usage
        assert one.mindllm["evidence"] == pytest.approx(other.mindllm["evidence"], abs=1e-3)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list]:
    """An event that batches wait for, and the requests that have begun to wait."""
    release, begun, original = threading.Event(), [], worker.answer_requests

    def answer(model: MindLLM, requests: list) -> list:
        begun.extend(requests)
        release.wait(30)
        return original(model, requests)

    monkeypatch.setattr(worker, "answer_requests", answer)
    return release, begun


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_queue_is_refused_with_a_time_to_come_again(
    served_model: MindLLM, tiny_store: Store, held: tuple[threading.Event, list]
) -> None:
    release, _ = held
    with running(served_model, tiny_store, {"max_queue": 2}) as server:
        create = server.openai().chat.completions.create
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(create, **ask(TRIAL, max_tokens=3)) for _ in range(2)]
            services = server.app.state.services
            wait_until(lambda: services.worker.count == 2)
            with pytest.raises(openai.RateLimitError) as refused:
                create(**ask(TRIAL))
            assert int(refused.value.response.headers["retry-after"]) > 0
            with server.http() as http:
                assert http.get("/health").status_code == 200  # nothing else waits
            release.set()
            assert all(future.result().choices for future in waiting)
        assert create(**ask(TRIAL, max_tokens=3)).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_request(
    served_model: MindLLM, tiny_store: Store, held: tuple[threading.Event, list], stream: bool
) -> None:
    release, begun = held
    with running(served_model, tiny_store) as server:
        body = json.dumps(ask(TRIAL, max_tokens=200, stream=stream)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.config.port)) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: len(begun) == 1)
        wait_until(begun[0].cancelled.is_set)
        release.set()
        services: Services = server.app.state.services
        wait_until(lambda: services.worker.count == 0)
        assert services.monitoring.cancelled._value.get() == 1
        assert services.monitoring.generated_tokens._value.get() <= 1


def test_an_unexpected_error_has_no_trace_and_ends_no_other_request(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(model: MindLLM, requests: list) -> list:
        raise RuntimeError("secret-content")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "answer_requests", fail)
        with server.http() as http:
            answers = [
                http.post("/v1/chat/completions", json=ask(TRIAL, stream=stream))
                for stream in (False, True)
            ]
    for answer in answers:
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "server_failed"
        assert "secret-content" not in answer.text
    assert "secret-content" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert server.openai().chat.completions.create(**ask(TRIAL, max_tokens=3)).choices


def test_tokens_of_a_scan_are_kept(server: RunningServer) -> None:
    lookups = server.app.state.services.monitoring.cache_lookups
    body = ask({"subject": "sub-03", "trial": 17}, max_tokens=2)
    before = [lookups.labels(kind)._value.get() for kind in ("miss", "hit")]
    for _ in range(2):
        server.openai().chat.completions.create(**body)
    after = [lookups.labels(kind)._value.get() for kind in ("miss", "hit")]
    assert after[0] - before[0] == 1
    assert after[1] > before[1]


def test_nothing_that_is_asked_or_answered_is_logged(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="mindllm")
    body = ask(TRIAL, "a-private-question", max_tokens=8, user="a-private-user")
    text = server.openai().chat.completions.create(**body).choices[0].message.content
    with server.http() as http:
        http.get("/v1/scans/a-private-id")
    wait_until(lambda: "/v1/scans/{scan} 404" in caplog.text)
    assert "/v1/chat/completions 200" in caplog.text
    assert "a-private" not in caplog.text
    assert text not in caplog.text
