"""Subjects of the store, and scans that users send."""

import nibabel as nib
import numpy as np
import pytest

from mindllm.data.store import Store
from tests.conftest import TEXTS
from tests.serve.serving import ALICE, BOB, RunningServer, ask, scan_files


def test_subjects_and_trials_do_not_tell_what_was_shown(
    server: RunningServer, tiny_store: Store
) -> None:
    with server.http() as http:
        subjects = http.get("/v1/subjects").json()["data"]
        trials = http.get("/v1/subjects/sub-02/trials", params={"offset": 3, "limit": 4})
        split = http.get("/v1/subjects/sub-02/trials", params={"split": "train"}).json()
    assert [subject["id"] for subject in subjects] == tiny_store.subjects
    assert [subject["in_training"] for subject in subjects] == [True, False, False]
    assert {(r["atlas"], r["parcel"]) for r in subjects[0]["regions"]} >= {("visual", "V1")}
    rows = trials.json()["data"]
    assert [row["trial"] for row in rows] == [3, 4, 5, 6]
    assert trials.json()["total"] == 24
    assert all(row["stimulus"] is None and row["answers"] is None for row in rows)
    assert not any(
        text in trials.text or "stim" in trials.text.replace("stimulus", "") for text in TEXTS
    )
    assert split["total"] == int((tiny_store.trials("sub-02")["split"] == "train").sum())


def test_the_mask_of_a_subject_is_that_of_the_store(
    server: RunningServer, tiny_store: Store
) -> None:
    with server.http() as http:
        answer = http.get("/v1/subjects/sub-01/mask")
    img, masker = nib.Nifti1Image.from_bytes(answer.content), tiny_store.masker("sub-01")
    np.testing.assert_array_equal(np.argwhere(img.get_fdata()), masker.voxel_indices)
    np.testing.assert_allclose(img.affine, masker.affine, atol=1e-5)


def test_a_user_never_gets_a_scan_of_another(
    token_server: RunningServer, tiny_store: Store
) -> None:
    files = scan_files(tiny_store.masker("sub-01"))
    with token_server.http(ALICE) as alice, token_server.http(BOB) as bob:
        scan = alice.post("/v1/scans", files=files).json()["id"]
        assert [s["id"] for s in alice.get("/v1/scans").json()["data"]] == [scan]
        assert bob.get("/v1/scans").json()["data"] == []
        absent = bob.get("/v1/scans/never-there")
        for method, url, body in (
            ("GET", f"/v1/scans/{scan}", None),
            ("GET", f"/v1/scans/{scan}/mask", None),
            ("DELETE", f"/v1/scans/{scan}", None),
            ("POST", "/v1/chat/completions", ask({"scan": scan})),
            ("POST", "/v1/evidence", {"model": "tiny", "fmri": {"scan": scan}, "texts": ["a"]}),
        ):
            answer = bob.request(method, url, json=body)
            assert answer.status_code == 404, (url, answer.text)
            message = answer.json()["error"]["message"]
            assert message == absent.json()["error"]["message"]
        assert alice.get(f"/v1/scans/{scan}").json()["n_volumes"] == 10
        assert alice.delete(f"/v1/scans/{scan}").json()["deleted"] is True
        assert alice.get(f"/v1/scans/{scan}").status_code == 404


@pytest.mark.parametrize("without", [[], [{"atlas": "visual", "parcel": "V1"}]])
def test_evidence_with_regions_switched_off_is_that_of_betas_set_to_zero(
    server: RunningServer, tiny_store: Store, served_model, without: list
) -> None:
    masker = tiny_store.masker("sub-01")
    fmri = {"subject": "sub-01", "trial": 5, "without": without}
    with server.http() as http:
        answer = http.post("/v1/evidence", json={"model": "tiny", "fmri": fmri, "texts": TEXTS[:3]})
    assert answer.status_code == 200, answer.text
    betas = tiny_store.betas("sub-01", standardize=True)
    transform = served_model.encoding_model.subject_transform(
        served_model.query_outputs(betas, masker)
    )
    is_off = masker.parcel_labels["visual"] == 1
    embeddings = served_model.embed_texts(TEXTS[:3])
    for key, row in (("evidence", betas[5]), ("evidence_without", np.where(is_off, 0, betas[5]))):
        outputs = served_model.query_outputs(row.astype(np.float32), masker)
        expected = served_model.encoding_model.evidence(outputs, transform, embeddings)[0]
        values = [item[key] for item in answer.json()["data"]]
        if key == "evidence" or without:
            np.testing.assert_allclose(values, expected.numpy(), rtol=1e-4, atol=1e-4)
        else:
            assert values == [None] * 3
    assert answer.json()["n_voxels_off"] == (int(is_off.sum()) if without else 0)
