"""Images and sums that show where an answer comes from."""

import time
from collections.abc import Callable
from threading import Event

import httpx
import nibabel as nib
import numpy as np
import pytest

from mindllm.data.store import Store
from mindllm.explain.attribution import attribute_words
from mindllm.explain.contributions import contribute
from mindllm.explain.explainer import Explainer
from mindllm.model.attention_maps import attention_mass
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from tests.serve.serving import RunningServer, running, scan_files

FMRI = {"subject": "sub-01", "trial": 7}
QUESTION = "What is it?"
BODY = {"model": "tiny", "fmri": FMRI}


def post(server: RunningServer, path: str, status: int = 200, **fields: object) -> bytes:
    with server.http() as http:
        answer = http.post(f"/v1/{path}", json=BODY | fields)
    assert answer.status_code == status, answer.text
    return answer.content if status == 200 and "json" not in answer.headers["content-type"] else (
        answer.json()
    )  # fmt: skip


def voxels(content: bytes, store: Store) -> np.ndarray:
    img, masker = nib.Nifti1Image.from_bytes(content), store.masker("sub-01")
    np.testing.assert_allclose(img.affine, masker.affine, atol=1e-5)
    return img.get_fdata()[tuple(masker.voxel_indices.T)]


@pytest.fixture
def explainer(served_model: MindLLM, tiny_store: Store) -> Explainer:
    betas = tiny_store.betas("sub-01", standardize=True)
    return Explainer(served_model, tiny_store.masker("sub-01"), betas[7:8], betas)


def test_attention_of_queries_tokens_and_all(
    server: RunningServer, tiny_store: Store, served_model: MindLLM, explainer: Explainer
) -> None:
    masker, n = tiny_store.masker("sub-01"), len(tiny_store.masker("sub-01"))
    for fields, expected in (
        ({}, attention_mass(served_model, masker) * n),
        ({"query": 3}, explainer.query_attention[3] * n),
        ({"token": 1}, explainer.token_attention[1] * n),
    ):
        image = voxels(post(server, "explain/attention", **fields), tiny_store)
        np.testing.assert_allclose(image, expected, rtol=1e-3)
    rows = post(server, "explain/attention/regions")["data"]
    for atlas in ("visual", "lobes"):
        of_atlas = [row for row in rows if row["atlas"] == atlas]
        assert sum(row["value"] for row in of_atlas) == pytest.approx(1)
        assert sum(row["voxel_fraction"] for row in of_atlas) == pytest.approx(1)
    refused = post(server, "explain/attention", 400, query=16)
    assert "the model has 16" in refused["error"]["message"]
    assert post(server, "explain/attention", 400, query=1, token=1)["error"]["param"] == "token"


def test_contributions_sum_to_the_evidence(
    server: RunningServer, tiny_store: Store, explainer: Explainer
) -> None:
    text = "a bird on a tree"
    image = voxels(post(server, "explain/evidence", text=text), tiny_store)
    expected = explainer.contributions(text)
    np.testing.assert_allclose(image, expected.voxels[0], rtol=1e-3, atol=1e-5)
    sums = post(server, "explain/evidence/regions", text=text)
    total = sum(row["value"] for row in sums["data"] if row["atlas"] == "lobes")
    assert total + sums["at_zero"] == pytest.approx(sums["evidence"], abs=1e-6)
    with server.http() as http:
        answer = http.post("/v1/evidence", json=BODY | {"texts": [text]}).json()
    assert answer["data"][0]["evidence"] == pytest.approx(sums["evidence"], abs=1e-4)


def test_words_and_their_voxels(
    server: RunningServer, tiny_store: Store, served_model: MindLLM
) -> None:
    masker = tiny_store.masker("sub-01")
    betas = tiny_store.betas("sub-01", [7], standardize=True)
    expected = attribute_words(served_model, masker, betas, "a dog runs", QUESTION)
    fields = {"answer": "a dog runs", "question": QUESTION}
    words = post(server, "explain/words", **fields)["data"]
    assert [word["text"] for word in words] == list(expected.words)
    np.testing.assert_allclose(
        [[word["log_likelihood"], word["at_zero"]] for word in words],
        np.stack([expected.log_likelihood, expected.at_zero], 1), atol=1e-4,
    )  # fmt: skip
    image = voxels(post(server, "explain/words/map", word=1, **fields), tiny_store)
    change = words[1]["log_likelihood"] - words[1]["at_zero"]
    assert image.sum() == pytest.approx(change, abs=0.06)
    np.testing.assert_allclose(image, expected.voxels[1], atol=0.06)
    rows = post(server, "explain/words/regions", word=1, **fields)["data"]
    lobes = sum(row["value"] for row in rows if row["atlas"] == "lobes")
    assert lobes == pytest.approx(image.sum(), abs=1e-4)
    assert post(server, "explain/words/map", 400, word=99, **fields)["error"]["message"]


def test_images_in_mni_space_lie_over_the_template(server: RunningServer) -> None:
    image = nib.Nifti1Image.from_bytes(post(server, "explain/attention", space="mni"))
    assert image.affine[0, 0] == 3
    with server.http() as http:
        template = nib.Nifti1Image.from_bytes(http.get("/v1/template").content)
    assert template.get_fdata().max() == 255
    corners = [nib.affines.apply_affine(i.affine, [0, 0, 0]) for i in (image, template)]
    assert np.abs(corners[0] - corners[1]).max() < 10


def test_sent_scans_are_explained_too_and_forgotten(
    server: RunningServer, tiny_store: Store
) -> None:
    with server.http() as http:
        files = scan_files(tiny_store.masker("sub-01"))
        scan = http.post("/v1/scans", files=files).json()["id"]
        body = {"model": "tiny", "fmri": {"scan": scan, "volume": 1}, "text": "a dog"}
        for path in ("explain/attention", "explain/evidence"):
            fields = {
                name: value
                for name, value in body.items()
                if "attention" not in path or name != "text"
            }
            assert http.post(f"/v1/{path}", json=fields).status_code == 200
        decoder = server.app.state.services.decoder
        caches = [decoder._voxels, decoder._contexts, decoder._attention]
        assert all(f"scan {scan}" in cache.keys() for cache in caches)  # noqa: SIM118
        http.delete(f"/v1/scans/{scan}")
        assert not any(f"scan {scan}" in cache.keys() for cache in caches)  # noqa: SIM118


def test_the_map_of_a_word_is_computed_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def attribute(*arguments: object, **options: object) -> object:
        calls.append(options)
        return attribute_words(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("mindllm.serve.explanations.attribute_words", attribute)
    fields = {"answer": "a cat sleeps", "question": QUESTION, "word": 1}
    first = post(server, "explain/words/map", **fields)
    post(server, "explain/words/regions", **fields)
    assert post(server, "explain/words/map", **fields) == first
    assert len(calls) == 1
    other = post(server, "explain/words/map", **fields | {"fmri": FMRI | {"trial": 8}})
    assert other != first
    assert len(calls) == 2
    server.app.state.services.decoder.forget("subject sub-01")
    post(server, "explain/words/map", **fields)
    assert len(calls) == 3


def test_contributions_to_a_text_are_computed_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def count(*arguments: object) -> object:
        calls.append(arguments)
        return contribute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mindllm.serve.explanations.contribute", count)
    post(server, "explain/evidence", text="a boat at sea")
    post(server, "explain/evidence/regions", text="a boat at sea")
    assert len(calls) == 1
    post(server, "explain/evidence", text="another text")
    assert len(calls) == 2
    server.app.state.services.decoder.forget("subject sub-01")
    post(server, "explain/evidence", text="a boat at sea")
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("evidence", {"texts": ["a dog"]}),
        ("explain/evidence", {"text": "what was never asked before"}),
        ("explain/evidence/regions", {"text": "nor this"}),
    ],
)
def test_what_the_model_refuses_is_answered_by_its_sentence(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, object]
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("the sentence encoder is not there. Fetch it.")

    monkeypatch.setattr(MindLLM, "embed_texts", refuse)
    error = post(server, path, 400, **fields)["error"]
    assert error["message"] == "the sentence encoder is not there. Fetch it."
    assert error["type"] == "invalid_request_error"


def test_a_client_that_goes_away_ends_the_map_of_its_word(
    served_model: MindLLM, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, pieces = Event(), []

    def attribute(*arguments: object, on_piece: Callable[[], None], **_: object) -> None:
        begun.set()
        while len(pieces) < 3000:  # 30 s, which a test may not take
            on_piece()
            pieces.append(len(pieces))
            time.sleep(0.01)

    monkeypatch.setattr("mindllm.serve.explanations.attribute_words", attribute)
    with running(served_model, tiny_store) as server:
        body = BODY | {"answer": "a cat sleeps", "question": QUESTION, "word": 1}
        with server.http() as http, pytest.raises(httpx.ReadTimeout):
            http.post("/v1/explain/words/map", json=body, timeout=httpx.Timeout(60, read=0.5))
        assert begun.wait(30)
        worker = server.app.state.services.worker
        deadline = time.monotonic() + 30
        while worker.count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert worker.count == 0
    assert len(pieces) < 3000
