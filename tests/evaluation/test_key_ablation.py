"""Ablation of keys: what carries the signal shows in the variants that can find it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.evaluation import key_ablation
from mindllm.evaluation.key_ablation import (
    KeyAblation,
    KeyAblationRow,
    ShuffledVoxels,
    key_variants,
    variant_config,
)
from mindllm.fmri.masker import VoxelMasker
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.modeling import MindLLM
from mindllm.model.receptive_fields import init_queries
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError

ANSWERS = [
    f"{who} {where}"
    for who in ("a dog", "a cat", "a train", "a pizza")
    for where in ("on a beach", "in a kitchen", "in a street")
]
NAMES = {"both", "position", "regions", "parcels", "halves", "shuffled", "not trained"}
SHIFTS_MM = (0.0, 60.0, -60.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three subjects with 48 voxels in 12 parcels; responses are of the parcels.

    The subjects lie 60 mm apart, so that positions say nothing about another subject.
    """
    rng = np.random.default_rng(0)
    indices = np.argwhere(np.ones((6, 4, 2)))
    parcels = np.repeat(np.arange(1, 13), 4)
    stimuli = [f"s{i:02d}" for i in range(2 * len(ANSWERS))]
    captions = [ANSWERS[i // 2] for i in range(len(stimuli))]
    embeddings = embed_sentences(captions)
    patterns = 3 * (embeddings - embeddings.mean(0)) @ rng.normal(size=(embeddings.shape[1], 12))
    subjects = []
    for number, shift in enumerate(SHIFTS_MM, 1):
        order = rng.permutation(len(indices))
        masker = VoxelMasker(
            f"sub-{number:02d}",
            (6, 4, 2),
            np.diag([3.0, 3.0, 3.0, 1.0]),
            indices,
            (3.0 * indices + shift).astype(np.float32),
            {"parcels": parcels[order].astype(np.int32), "halves": (parcels[order] // 7 + 1)},
            {"parcels": {i: f"P{i}" for i in range(1, 13)}, "halves": {1: "front", 2: "back"}},
        )
        betas = np.tile(patterns[:, parcels[order] - 1], (2, 1))
        betas = betas + rng.normal(size=betas.shape)
        trials = pd.DataFrame({"stimulus": stimuli * 2, "split": "train"})
        subjects.append((masker, betas.astype(np.float32), trials))
    table = pd.DataFrame({"stimulus": stimuli, "caption": captions})
    folder = tmp_path_factory.mktemp("parcels") / "store"
    conversations = conversations_from_captions(table)
    return write_store(folder, subjects, conversations, name="parcels", source="", license="MIT")


@pytest.fixture
def config(tiny_llm_folder: Path) -> TrainConfig:
    return TrainConfig(
        language_model=str(tiny_llm_folder),
        encoder={"num_queries": 24, "hidden_size": 32, "embedding_dim": 8, "dropout": 0.0},
        alignment={"max_steps": 4, "batch_size": 24},
        encoding_model={"rank": 8, "alignment_shrinkage": None, "alignment_ridge": None},
        voxel_dropout=(0.0, 0.1),
    )


def of_all(rows: list[KeyAblationRow], condition: str = "fmri") -> dict[str, KeyAblationRow]:
    return {r.variant: r for r in rows if r.subject == "all" and r.condition == condition}


def test_regions_find_what_positions_cannot(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    ablation = KeyAblation(store, tmp_path, config, left_out=["sub-01"])
    rows = ablation.run()
    two_way = {name: row.two_way for name, row in of_all(rows).items()}
    assert set(two_way) == NAMES
    assert min(two_way["regions"], two_way["parcels"]) > 0.8
    assert max(two_way["position"], two_way["shuffled"], two_way["not trained"]) < 0.7
    assert two_way["halves"] < two_way["parcels"]  # two parcels cannot tell twelve answers apart
    for row in of_all(rows, "shuffled_trials").values():
        assert row.two_way == pytest.approx(0.5, abs=0.03)
    row = of_all(rows)["regions"]
    assert row.two_way_difference == pytest.approx(row.two_way - two_way["both"])
    assert row.two_way_difference_ci_low > 0
    assert of_all(rows)["both"].two_way_difference == 0


def test_an_interrupted_ablation_goes_on(
    store: Store, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def count(*args: object, **options: object) -> object:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[1])
        return train(*args, **options)  # type: ignore[arg-type]

    def ablation(name: str) -> KeyAblation:
        names = ["position", "regions"]
        return KeyAblation(store, tmp_path / name, config, left_out=["sub-01"], names=names)

    monkeypatch.setattr(key_ablation, "train", count)
    with pytest.raises(KeyboardInterrupt):
        ablation("first").run()
    monkeypatch.setattr(key_ablation, "train", train)
    rows = ablation("first").run()
    assert not any((tmp_path / "first" / "partial" / "models").iterdir())
    assert ablation("anew").run() == rows
    other = config.model_copy(update={"seed": 3})
    with pytest.raises(InputError, match="predictions of another evaluation: its options"):
        KeyAblation(store, tmp_path / "first", other)


def test_variants_set_the_keys_and_leave_the_rest(store: Store, config: TrainConfig) -> None:
    known = {variant.name: variant for variant in key_variants(store)}
    assert [v.name for v in key_variants(store, ["halves"])] == ["both", "halves"]
    trained = variant_config(config, known["halves"], 5)
    assert trained.encoder_config().num_queries == 24
    assert trained.encoder_config().atlases == ("halves",)
    assert not trained.encoder_config().coordinates_in_keys
    assert (trained.seed, trained.instruction_tuning.max_steps) == (5, 0)
    with pytest.raises(InputError, match="no variant colour of the keys; known: both, position"):
        key_variants(store, ["colour"])
    for options in ({"encoder": {"atlases": []}}, {"alignment": {"max_steps": 0}}):
        with pytest.raises(InputError, match=r"leave these and init_from out|no keys would be"):
            KeyAblation(store, Path("never-made"), TrainConfig(**options))


def test_shuffled_voxels_are_the_same_voxels_in_one_other_order(store: Store) -> None:
    shuffled, masker = ShuffledVoxels(store.path), store.masker("sub-01")
    other = shuffled.masker("sub-01")
    assert other is shuffled.masker("sub-01")
    assert (other.coords_mm != masker.coords_mm).any(1).mean() > 0.9
    assert sorted(map(tuple, other.coords_mm)) == sorted(map(tuple, masker.coords_mm))
    order = [masker.voxel_indices.tolist().index(row) for row in other.voxel_indices.tolist()]
    labels = masker.parcel_labels["parcels"]
    assert other.parcel_labels["parcels"].tolist() == labels[order].tolist()
    betas = store.betas("sub-01", [0], standardize=True)
    assert np.array_equal(shuffled.betas("sub-01", [0], standardize=True), betas)


def test_an_encoder_without_coordinates_attends_to_parcels(store: Store) -> None:
    names = {"parcels": [f"P{i}" for i in range(1, 13)]}
    torch.manual_seed(0)
    encoder = FMRIEncoder(MindLLMConfig(num_queries=12, coordinates_in_keys=False), names)
    init_queries(encoder, [store.masker("sub-01")])
    attention = encoder.attention_weights(encoder.prepare_voxels(store.masker("sub-02")))
    labels = store.masker("sub-02").parcel_labels["parcels"]
    by_parcel = torch.stack(
        [attention[:, torch.from_numpy(labels == i)].sum(1) for i in range(1, 13)]
    )
    assert (by_parcel.max(0).values > 0.5).all()
    assert len(set(by_parcel.argmax(0).tolist())) == 12  # each query a parcel of its own
    moved = replace(store.masker("sub-02"), coords_mm=store.masker("sub-02").coords_mm + 50)
    assert torch.equal(encoder.attention_weights(encoder.prepare_voxels(moved)), attention)
    with pytest.raises(InputError, match="there is no atlas to compute keys from"):
        FMRIEncoder(MindLLMConfig(coordinates_in_keys=False), {})


def test_a_model_of_one_atlas_is_saved_and_loaded(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    (variant,) = (v for v in key_variants(store) if v.name == "halves")
    model = train(store, tmp_path / "model", variant_config(config, variant, 0))
    loaded = MindLLM.from_pretrained(tmp_path / "model")
    assert loaded.encoder.config.atlases == ("halves",)
    assert list(loaded.encoder.parcel_names) == ["halves"]
    betas = store.betas("sub-01", [0, 1], standardize=True)
    masker = store.masker("sub-01")
    assert torch.equal(loaded.encode(betas, masker), model.encode(betas, masker))
    with pytest.raises(InputError, match="has no atlas AAL; it holds parcels, halves"):
        store.select_atlases(["AAL"])


def test_the_command_writes_table_and_figure(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    options, out = tmp_path / "options.json", tmp_path / "keys"
    options.write_text(config.model_dump_json(exclude_unset=True))
    arguments = ["ablate", str(store.path), "--out", str(out), "--config", str(options)]
    arguments += ["--left-out", "sub-02", "--keys", "regions,not trained"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "key_ablation.tsv", sep="\t")
    assert set(table["variant"]) == {"both", "regions", "not trained"}
    assert set(table["subject"]) == {"all", "sub-02"}
    text = (out / "key_ablation.md").read_text()
    assert "By the interval of the 2-way difference, `both` is" in text
    assert (out / "key_ablation.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "partial").exists()
