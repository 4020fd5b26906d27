"""Report about a store: a good one passes every check, a bad one is named; the page is whole."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mindllm.data.quality_control import QCResult, group_results
from mindllm.data.resplit import create_split
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter, conversations_from_captions
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.templates import grey_matter_probability
from mindllm.report.store_report import SubjectOverview, inspect_store, write_store_report
from tests.conftest import REGIONS, update_manifests

SUBJECTS = ["sub-01", "sub-02"]
STIMULI = [f"stim{n}" for n in range(12)]
SIDES = {1: "L_V1", 2: "R_V1", 3: "in_all"}  # the last is of neither side
COORDINATES, LEAK, TEXT = (
    "voxels lie in the MNI brain",
    "no stimulus on both sides of the split",
    "text about the stimuli",
)
REPETITIONS = "trials belong to their stimuli"


@cache
def grey_matter_coords() -> np.ndarray:
    """Coordinates in grey matter, (80, 3) in mm, 8 mm apart."""
    grid = np.stack(
        np.meshgrid(
            np.arange(-60, 61, 8), np.arange(-92, 61, 8), np.arange(-40, 61, 8), indexing="ij"
        ),
        -1,
    )
    mm = grid.reshape(-1, 3).astype(np.float32)
    mm = mm[(grey_matter_probability(mm) > 0.5) & (np.abs(mm[:, 0]) > 5)]
    return mm[np.random.default_rng(0).permutation(len(mm))[:80]]


def make(
    path: Path,
    *,
    coords: Callable[[np.ndarray], np.ndarray] = lambda mm: mm,
    betas: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    table: Callable[[pd.DataFrame], pd.DataFrame] = lambda trials: trials,
    n_described: int = len(STIMULI),
    ceilings: bool = False,
    standardized: bool = False,
) -> Store:
    """Two subjects, twelve stimuli twice in each of two sessions; the first as the options say."""
    rng = np.random.default_rng(1)
    mm = grey_matter_coords()
    sides = np.where(mm[:, 0] < 0, 1, 2)
    sides[::9] = 3
    areas = rng.integers(0, 4, len(mm))
    patterns = rng.normal(size=(len(STIMULI), len(mm)))
    writer = StoreWriter(
        path,
        name="made",
        source="the tests",
        license="MIT",
        prepared_by="arrays",
        options={},
        standardized=standardized,
    )
    for name in SUBJECTS:
        is_first = name == SUBJECTS[0]
        order = np.concatenate([rng.permutation(len(STIMULI)) for _ in range(4)])
        values = 100 + 5 * patterns[order] + 5 * rng.normal(size=(len(order), len(mm)))
        trials = pd.DataFrame(
            {"stimulus": [STIMULI[n] for n in order], "session": np.repeat(["1", "2"], 24)}
        )
        trials["split"] = np.where(trials["stimulus"].isin(STIMULI[:2]), "test", "train")
        masker = VoxelMasker(
            name,
            (100, 1, 1),
            np.eye(4),
            np.c_[np.arange(len(mm)), np.zeros((len(mm), 2), int)],
            coords(mm) if is_first else mm,
            {"sides": sides, "visual": areas},
            {"sides": SIDES, "visual": REGIONS["visual"]},
        )
        values, trials = (betas(values), table(trials)) if is_first else (values, trials)
        ncsnr = np.linspace(0, 1, len(mm)).astype(np.float32) if ceilings and is_first else None
        writer.write_subject(
            masker, trials, [(np.arange(len(trials)), values.astype(np.float32))], ncsnr=ncsnr
        )
    texts = pd.DataFrame(
        {
            "stimulus": STIMULI[:n_described],
            "caption": [f"words about {name}" for name in STIMULI[:n_described]],
        }
    )
    return writer.finish(conversations_from_captions(texts))


def failed_checks(store: Store) -> dict[str, QCResult]:
    """Checks that did not pass, by name."""
    return {check.name: check for check in inspect_store(store).checks if not check.passed}


def test_a_good_store_passes_every_check(tmp_path: Path) -> None:
    report = inspect_store(make(tmp_path / "store"))
    assert not [check for check in report.checks if not check.passed]
    assert {check.name for check in report.checks} == {
        COORDINATES,
        "sides of sides",
        "betas",
        "voxels vary",
        "standardization",
        "sessions",
        REPETITIONS,
        LEAK,
        TEXT,
    }
    subjects = {check.name: check.subject for check in report.checks}
    assert subjects[COORDINATES] == "2 subjects; sub-01", "one line for all"
    assert subjects[LEAK] == ""
    assert report.subjects[0] == SubjectOverview(
        subject="sub-01",
        voxels="80",
        trials="48",
        sessions="2",
        stimuli="12",
        shown="4x",
        split="40/0/8",
        betas="0 MiB",
        ceiling="-",
    )
    assert [atlas.atlas for atlas in report.atlases] == ["sides", "visual"]
    assert [atlas.subjects for atlas in report.atlases] == ["2", "2"]
    assert [atlas.parcels for atlas in report.atlases] == ["3", "3"]
    assert report.atlases[0].coverage == "100"
    assert report.info["split"] == "default (others: none)"


def copied(values: np.ndarray) -> np.ndarray:
    values[24:] = values[:24]
    return values


def dead(values: np.ndarray) -> np.ndarray:
    values[:, :8] = 7
    return values


def far_out(values: np.ndarray) -> np.ndarray:
    values[3, 4] = 1e6
    return values


def shifted(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.assign(**{c: np.roll(trials[c], 1) for c in ("stimulus", "split")})


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "native positions": (
        {"coords": lambda mm: mm + np.array([0, 0, 90])},
        COORDINATES,
        r"outside its box; are the positions MNI millimetres",
    ),
    "some outside": (
        {"coords": lambda mm: np.r_[mm[:5] + np.array([0, 0, 150]), mm[5:]]},
        COORDINATES,
        ", 5 outside its box",
    ),
    "in no grey matter": (
        {"coords": lambda mm: np.sign(mm[:, :1]) * [26, 0, 0] + [0, -20, 28] + mm * 0.01},
        COORDINATES,
        "0% of the voxels are where the template has grey matter, 0 outside",
    ),
    "a mirrored brain": (
        {"coords": lambda mm: mm * [-1, 1, 1]},
        "sides of sides",
        "2 parcels lie on the other side, first L_V1; is a file mirrored",
    ),
    "a session twice": (
        {"betas": copied},
        "sessions",
        "the session that begins with trial 24 is a copy of another",
    ),
    "dead voxels": ({"betas": dead}, "voxels vary", "8 voxels never vary and count as 0"),
    "a value far out": (
        {"betas": far_out},
        "betas",
        "0 with NaN or infinity; the largest beta is 10029 times the median",
    ),
    "shifted trials": (
        {"table": shifted},
        REPETITIONS,
        "is the table of trials shifted, or another subject's",
    ),
    "nothing to train on": (
        {"table": lambda t: t.assign(split="unused")},
        "standardization",
        "standardized with all own trials, without labels",
    ),
    "no text": (
        {"n_described": 9},
        TEXT,
        "3 of 12 stimuli have no text; add some: mindllm prepare instructions",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_store_fails_the_check_of_its_fault(tmp_path: Path, kind: str) -> None:
    options, name, words = BAD[kind]
    failed = failed_checks(make(tmp_path / "store", **options))
    # A copied session has the other's trials table, so its trials may not be of their stimuli.
    assert set(failed) - ({REPETITIONS} if kind == "a session twice" else set()) == {name}
    assert words in failed[name].message
    assert failed[name].subject == ("" if name == TEXT else "sub-01")


def test_a_stimulus_trained_on_and_tested(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    file = store.path / "subjects" / "sub-02" / "trials.parquet"
    trials = pd.read_parquet(file)
    trials.loc[trials["stimulus"] == "stim0", "split"] = "train"
    trials.to_parquet(file)
    update_manifests(store.path)
    failed = failed_checks(Store(store.path))
    assert set(failed) == {LEAK}
    assert "1 stimuli stand in two splits, first 'stim0'" in failed[LEAK].message
    by_subject = create_split(
        make(tmp_path / "other"), "by-subject", "subject", subjects_by_split={"val": ["sub-02"]}
    )
    (shared,) = (check for check in inspect_store(by_subject).checks if check.name == LEAK)
    assert shared.passed, "subjects are what is split"
    assert "a split by subject, so stimuli are shared" in shared.message


def test_values_that_came_normalized_have_no_statistics_to_check(tmp_path: Path) -> None:
    report = inspect_store(
        make(tmp_path / "store", standardized=True, betas=lambda values: values - 100)
    )
    assert not {"voxels vary", "standardization"} & {check.name for check in report.checks}
    assert report.info["betas"] == "standardized already"


def test_failed_checks_come_first() -> None:
    checks = [
        QCResult("a", "x", True, "1"),
        QCResult("a", "y", True, "2"),
        QCResult("b", "x", False, "3"),
        QCResult("b", "y", True, "4"),
    ]
    assert group_results(checks) == [
        checks[2],
        checks[0],
        QCResult("2 subjects; a", "y", True, "2"),
    ]


@pytest.mark.parametrize("ceilings", [True, False])
def test_the_page_is_complete(tmp_path: Path, ceilings: bool) -> None:
    store = make(tmp_path / "store", ceilings=ceilings, n_described=9)
    store.add_conversations(
        pd.DataFrame(
            [
                {
                    "subject": "sub-02",
                    "trial_index": 5,
                    "source": "before",
                    "turns": [
                        {"role": "user", "content": "<fMRI> What <b>before</b>?"},
                        {"role": "assistant", "content": "a dog"},
                    ],
                    "answers": ["a dog"],
                }
            ]
        )
    )
    create_split(store, "half", "stimulus", fractions={"test": 0.5})
    data = Store(store.path, "half")
    report = inspect_store(data)
    assert report.info["split"] == "half (others: half)"
    page = write_store_report(report, data, tmp_path / "page")
    pictures = {"coverage.png", "trials.png", "noise-ceiling.png"}
    tables = {"index.html", "reliability.tsv"}
    assert {file.name for file in (tmp_path / "page").iterdir()} == pictures | tables
    html = page.read_text()
    origin = "as published with the data" if ceilings else "estimated from the repeated stimuli"
    assert origin in html
    reliability = pd.read_csv(tmp_path / "page" / "reliability.tsv", sep="\t")
    assert reliability["subject"].tolist() == list(SUBJECTS)
    for name in pictures:
        assert f'src="{name}"' in html
        assert (tmp_path / "page" / name).read_bytes().startswith(b"\x89PNG")
    assert "</html>" in html
    assert "half (others: half)" in html
    assert all(f"<td>{name}</td>" in html for name in SUBJECTS)
    assert (report.samples[-1].about, report.samples[-1].source) == ("trial 5 of sub-02", "before")
    assert len(report.samples) == 3, "two of each source, where there are two"
    for sample in report.samples:
        assert f"{sample.source}, {sample.about}" in html
        assert sample.turns[-1]["content"] in html
    assert "&lt;b&gt;before&lt;/b&gt;" in html, "text is shown as it is"
    assert '<td class="warn">warn</td><td>text about the stimuli</td>' in html
