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
from mindllm.explain import explanation
from mindllm.explain.explainer import Explainer
from mindllm.explain.explanation import ExplainConfig, explain
from mindllm.explain.subject_data import read_scan_subject, read_store_subject
from mindllm.explain.tables import COLUMNS
from mindllm.report import explanation as report
from mindllm.report.explanation import write_explanation
from mindllm.utils.errors import InputError
from tests.explain.conftest import Fitted

OPTIONS = ExplainConfig(
    words=(("dog", "dogs"), ("cat",)),
    attributes={"animal": ("dog", "cat")},
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
    monkeypatch.setattr(report, "DRAWINGS", {"slices": report.DRAWINGS["slices"]})
    subjects = [
        read_store_subject(tiny_store, "sub-02"),
        read_store_subject(tiny_store, "sub-03", [3, 1]),
    ]
    result = explain(embedded.model, subjects, OPTIONS)
    page = write_explanation(result, tmp_path / "out", "A title", write_interactive=False)
    text = page.read_text()
    assert "A title" in text
    assert text.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', text)) == 8
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    for name in ("text", "lesions", "word-dog", "pattern-word-dog", "attribute-animal"):
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
    np.testing.assert_allclose(values, result.subjects[0].texts.voxels, rtol=1e-4, atol=1e-7)
    means = tmp_path / "out" / "maps" / "mean"
    assert {file.name.removesuffix("_space-MNI152.nii.gz") for file in means.iterdir()} == {
        "attention", "text", "word-dog", "word-cat", "attribute-animal", "pattern-word-dog",
        "pattern-word-cat", "pattern-attribute-animal",
    }  # fmt: skip
    words = pd.read_csv(tmp_path / "out" / "tables" / "answers.tsv", sep="\t")
    assert set(words["subject"]) == {"sub-02", "sub-03"}
    assert set(words["trial"]) == {0, 3}


def test_region_sums_are_sums_of_voxels(embedded: Fitted, tiny_store: Store) -> None:
    data = read_store_subject(tiny_store, "sub-03")
    (part,) = explain(embedded.model, [data], OPTIONS.model_copy(update={"n_answers": 0})).subjects
    assert part.answers == ()
    for result in (part.texts, *part.words, *part.attributes):
        expected = [result.voxels[region.voxels].sum() for region in result.samples.regions]
        np.testing.assert_allclose(result.samples.values.mean(0), expected, atol=1e-9)
        assert result.error < 1e-6


def test_what_an_interruption_left_is_read(
    embedded: Fitted, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [read_store_subject(tiny_store, "sub-03", [3, 1])]
    lesion_trial, calls = explanation.lesion_trial, []

    def count(*arguments: object) -> object:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(arguments)
        return lesion_trial(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(explanation, "lesion_trial", count)
    with pytest.raises(KeyboardInterrupt):
        explain(embedded.model, data, OPTIONS, keep_in=tmp_path)
    monkeypatch.setattr(explanation, "lesion_trial", lesion_trial)
    expected = explain(embedded.model, data, OPTIONS)
    (tmp_path / "sub-03-lesions-3.npz").stat()  # the first of them is there
    calls.clear()
    resumed = explain(embedded.model, data, OPTIONS, keep_in=tmp_path)
    first, second = expected.subjects[0], resumed.subjects[0]
    np.testing.assert_array_equal(first.lesions.values, second.lesions.values)
    np.testing.assert_array_equal(first.lesions.null, second.lesions.null)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    monkeypatch.setattr(Explainer, "attribute_words", None)  # it is not called again
    again = explain(embedded.model, data, OPTIONS, keep_in=tmp_path).subjects[0]
    assert again.answers[0].words == second.answers[0].words
    np.testing.assert_array_equal(again.answers[0].voxels, second.answers[0].voxels)


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
        (["--attribute", "animal"], "expected NAME=WORD"),
        (["--word", "dog", "--attribute", "animal=dog,cat"], "has the word 'cat', which is not"),
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
