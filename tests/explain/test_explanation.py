"""An explanation of a subject, and the folder that is written about it."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.explain.explanation import ExplainConfig, explain
from mindllm.explain.subject_data import read_scan_subject, read_store_subject
from mindllm.explain.tables import COLUMNS
from mindllm.report import explanation as report
from mindllm.report.explanation import write_explanation
from mindllm.utils.errors import InputError
from tests.explain.conftest import Fitted

OPTIONS = ExplainConfig(
    words=(("dog", "dogs"),),
    networks={"early": ("V1", "V2")},
    n_random=19,
    permutations=49,
    min_voxels=5,
)


@pytest.fixture
def embedded(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> Fitted:
    """Texts are embedded without a sentence encoder: as random vectors, the same each time."""

    def embed(texts: list[str], *_: object) -> np.ndarray:
        size = fitted.embeddings.shape[1]
        rows = [np.random.default_rng(list(text.encode())).normal(size=size) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    monkeypatch.setattr("mindllm.model.evidence.embed_sentences", embed)
    fitted.model.float()
    return fitted


def test_a_folder_holds_maps_tables_pictures_and_a_page(
    embedded: Fitted, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "DRAWINGS", {"flat": report.DRAWINGS["flat"]})
    subjects = [
        read_store_subject(tiny_store, "sub-02"),
        read_store_subject(tiny_store, "sub-03", [3, 1]),
    ]
    explanation = explain(embedded.model, subjects, OPTIONS)
    page = write_explanation(explanation, tmp_path / "out", "A title", write_interactive=False)
    text = page.read_text()
    assert "A title" in text
    assert text.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', text)) == 3
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    for name in ("text", "lesions", "word-dog"):
        table = pd.read_csv(tmp_path / "out" / "tables" / f"{name}.tsv", sep="\t")
        assert tuple(table.columns) == COLUMNS
        assert "early" in set(table["region"])
        assert table["p_value"].between(0.01, 1).all()
        assert (table["ci_low"] <= table["ci_high"]).all()
    masker = subjects[0].masker
    folder = tmp_path / "out" / "maps" / "sub-02"
    queries = nib.load(folder / "attention-queries_space-subject.nii.gz")
    assert queries.shape == (*masker.shape, 16)
    values = masker.transform(folder / "contribution-text_space-subject.nii.gz")[0]
    np.testing.assert_allclose(values, explanation.subjects[0].texts.voxels, rtol=1e-4, atol=1e-7)
    words = pd.read_csv(tmp_path / "out" / "tables" / "answers.tsv", sep="\t")
    assert set(words["subject"]) == {"sub-02", "sub-03"}
    assert set(words["trial"]) == {0, 3}


def test_region_sums_are_sums_of_voxels(embedded: Fitted, tiny_store: Store) -> None:
    data = read_store_subject(tiny_store, "sub-03")
    (part,) = explain(embedded.model, [data], OPTIONS.model_copy(update={"n_answers": 0})).subjects
    assert part.answers == ()
    for result in (part.texts, *part.words):
        expected = [result.voxels[region.voxels].sum() for region in result.samples.regions]
        np.testing.assert_allclose(result.samples.values.mean(0), expected, atol=1e-9)
        assert result.error < 1e-6


def test_texts_of_a_scan_are_chosen_by_its_trials(embedded: Fitted, tiny_store: Store) -> None:
    masker = tiny_store.masker("sub-03")
    img = masker.inverse_transform(np.asarray(tiny_store.betas("sub-03")))
    data = read_scan_subject(embedded.model, img, masker, [2], ["a dog", "a cat"])
    assert not data.texts_are_known
    assert set(data.texts) <= {"a dog", "a cat"}
    assert data.chosen.tolist() == [2]
    with pytest.raises(InputError, match="name texts to choose among"):
        read_scan_subject(embedded.model, img, masker)


def test_a_trial_that_is_not_there_is_refused(tiny_store: Store) -> None:
    with pytest.raises(InputError, match=r"sub-02 has no trial 99 with a text; it has 24 trials"):
        read_store_subject(tiny_store, "sub-02", [0, 99])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "mask.nii.gz"], "is a folder, so a store is expected"),
        (["--network", "motion"], "expected NAME=PARCEL"),
        (["--subject", "sub-09"], "has no subject sub-09"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    tiny_store: Store, embedded: Fitted, tmp_path: Path, arguments: list[str], message: str
) -> None:
    embedded.model.save_pretrained(tmp_path / "model")
    command = ["explain", str(tmp_path / "model"), str(tiny_store.path)]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
