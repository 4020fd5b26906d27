"""Shared fixtures: a tiny random language model, subjects of a few voxels, and the real data."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.tiny_llm import save_tiny_llm
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.utils.manifest import find_manifests

TEXTS = [
    "a dog runs",
    "a cat sleeps",
    "two people eat pizza",
    "a red car",
    "a child on the beach",
    "What is this person seeing?",
]
REGIONS = {"visual": {1: "V1", 2: "V2", 3: "FFA"}, "lobes": {1: "occipital", 2: "temporal"}}
TINY_SIZES = {
    "num_queries": 16,
    "key_dim": 24,
    "num_frequencies": 3,
    "parcel_embedding_dim": 4,
    "hidden_size": 32,
    "num_fmri_tokens": 3,
    "token_dim": 8,
}
TINY_CONFIG = MindLLMConfig(**TINY_SIZES)

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: workers share the cores already
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands that tests start
    torch.set_num_threads(1)


def update_manifests(folder: Path) -> None:
    """Give a folder that a test has changed the checksums of its files."""
    for manifest in find_manifests(folder):
        manifest.update()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, or a skip that says so."""
    place = Path(os.environ.get("MINDLLM_SHARED", Path(__file__).parents[2] / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"real data not found at {place}; set MINDLLM_SHARED to its folder")
    return place / "data"


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny-llm")
    save_tiny_llm(folder, TEXTS, vocab_size=320, hidden_size=32, max_length=256)
    return folder


@pytest.fixture
def tiny_llm(tiny_llm_folder: Path) -> FrozenLanguageModel:
    return load_language_model(tiny_llm_folder)


@pytest.fixture
def tiny_config() -> MindLLMConfig:
    return TINY_CONFIG


@pytest.fixture
def tiny_model(tiny_llm: FrozenLanguageModel, tiny_config: MindLLMConfig) -> MindLLM:
    torch.manual_seed(1)
    return MindLLM(
        tiny_config, {p: list(names.values()) for p, names in REGIONS.items()}, tiny_llm
    ).eval()


def make_space(
    name: str = "sub-01", voxels: int = 60, seed: int = 0, shape: tuple[int, int, int] = (12, 10, 8)
) -> VoxelMasker:
    """Random voxels on an oblique, flipped 8 mm grid around the origin, with two parcellations."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-8.0, 8.0, 8.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)
    mask = np.zeros(shape, np.uint8)
    mask.flat[rng.choice(mask.size, voxels, replace=False)] = 1
    atlases = {
        p: nib.Nifti1Image(rng.integers(0, len(names) + 1, shape).astype(np.int16), affine)
        for p, names in REGIONS.items()
    }
    return VoxelMasker.from_mask_img(
        nib.Nifti1Image(mask, affine), atlases, parcel_names=REGIONS, subject=name
    )


@pytest.fixture
def space() -> VoxelMasker:
    return make_space()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three people, six stimuli four times each; patterns are smooth functions of position."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(len(TEXTS), 3)) / 40
    subjects = []
    for n, name in enumerate(["sub-01", "sub-02", "sub-03"]):
        space = make_space(name, 50 + 10 * n, seed=n)
        shown = np.tile(np.arange(len(TEXTS)), 4)
        betas = 100 + 5 * (
            np.cos(space.coords_mm @ waves[shown].T).T
            + 0.3 * rng.normal(size=(len(shown), len(space)))
        )
        trials = pd.DataFrame(
            {
                "stimulus": [f"stim{i}" for i in shown],
                "session": np.repeat(["1", "2"], len(shown) // 2),
            }
        )
        subjects.append((space, betas.astype(np.float32), trials))
    table = pd.DataFrame({"stimulus": [f"stim{i}" for i in range(len(TEXTS))], "caption": TEXTS})
    return write_store(
        tmp_path_factory.mktemp("store") / "tiny",
        subjects,
        conversations_from_captions(table),
        name="tiny",
        source="made by the tests",
        license="MIT",
    )


def make_bids(root: Path, people: int = 2, sessions: int = 2) -> dict[str, np.ndarray]:
    """BIDS derivatives on one oblique int16 grid, and the planted betas (trials, voxels).

    Slope 0.5 and intercept 40; a parcellation `visual` with its lookup table; each session shows
    the six stimuli twice.
    """
    rng, space = np.random.default_rng(0), make_space(voxels=400)
    waves, planted = rng.normal(size=(len(TEXTS), 3)) / 40, {}
    for n in range(people):
        name = f"sub-{n + 1:02d}"
        own = space.select_voxels(np.sort(rng.permutation(len(space))[: 60 + 10 * n]))
        folder = root / name / "func"
        folder.mkdir(parents=True)
        mask = own.inverse_transform(np.ones(len(own), np.uint8))
        nib.save(mask, folder / f"{name}_task-images_space-MNI152_desc-brain_mask.nii.gz")
        planted[name] = np.empty((0, len(own)), np.float32)
        for session in range(sessions):
            shown = rng.permutation(np.tile(np.arange(len(TEXTS)), 2))
            raw = 100 * np.cos(own.coords_mm @ waves[shown].T).T + 20 * rng.normal(
                size=(len(shown), len(own))
            )
            planted[name] = np.concatenate(
                [planted[name], raw.round().astype(np.float32) * 0.5 + 40]
            )
            image = own.inverse_transform(
                raw.round().astype(np.int16)
            )  # what stands in the file, before slope and intercept
            image.header.set_slope_inter(0.5, 40)
            place = folder if sessions == 1 else root / name / f"ses-{session + 1:02d}" / "func"
            place.mkdir(parents=True, exist_ok=True)
            stem = name if sessions == 1 else f"{name}_ses-{session + 1:02d}"
            nib.save(
                image,
                place / f"{stem}_task-images_space-MNI152_stat-effect_desc-SingletrialBetas"
                "_statmap.nii.gz",
            )
            trials = {"stimulus": [f"stim{i}" for i in shown], "caption": [TEXTS[i] for i in shown]}
            pd.DataFrame({"volume": range(len(shown)), **trials}).to_csv(
                place / f"{stem}_task-images_desc-SingletrialBetas_trials.tsv",
                sep="\t",
                index=False,
            )
    labels = space.inverse_transform(space.parcel_labels["visual"].astype(np.int16))
    nib.save(labels, root / "atlas-visual_space-MNI152_dseg.nii.gz")
    table = pd.DataFrame({"index": REGIONS["visual"].keys(), "name": REGIONS["visual"].values()})
    table.to_csv(root / "atlas-visual_dseg.tsv", sep="\t", index=False)
    return planted
