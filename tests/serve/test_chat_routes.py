"""Conversations about a scan, with the official client of OpenAI."""

from mindllm.data.store import Store
from tests.serve.serving import RunningServer, ask, scan_files


def test_the_official_client_streams_two_turns_about_an_uploaded_scan(
    server: RunningServer, tiny_store: Store
) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    with server.http() as http:
        sent = http.post("/v1/scans", files=scan_files(tiny_store.masker("sub-01")))
    assert sent.status_code == 201, sent.text
    reference = {"scan": sent.json()["id"], "volume": 3}
    messages = ask(reference)["messages"]
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
        last = next(c for c in chunks if c.choices and c.choices[0].finish_reason)
        assert 0 < last.mindllm["probability"] < 1
        assert len(last.mindllm["shuffled"]["values"]) == 9
        messages.append({"role": "assistant", "content": text})
        whole = client.chat.completions.create(model="tiny", messages=messages[:-1], max_tokens=12)
        assert whole.choices[0].message.content == text
