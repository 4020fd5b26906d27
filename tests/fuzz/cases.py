"""The formats that the package reads: a small valid file of each, and its way in."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from functools import partial as bind
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import save_file
from scipy.io import loadmat, savemat

from benchmarks.generate import write_nsd_design
from mindllm.convert import checkpoint_tensors
from mindllm.data.store import Store
from mindllm.data.store_writer import write_store
from mindllm.datasets import bids, glmsingle, laion_fmri, mindllm_release, mosaic, nsd
from mindllm.datasets.release_layouts import HDF5Layout, MindEyeLayout
from mindllm.fmri import grayordinates, transforms
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import load_masker, load_voxel_column, save_masker
from mindllm.fmri.roi_volumes import load_parcel_names
from mindllm.fmri.scaling import SessionScaler
from mindllm.instructions import SOURCES, collect
from mindllm.metrics import tasks
from mindllm.serve import scan_reader
from mindllm.serve.scan_reader import ScanLimits
from mindllm.training.configuration import TrainConfig, read_config
from mindllm.training.resume import METADATA_KEY, load_checkpoint
from mindllm.utils.hdf5 import open_hdf5
from mindllm.utils.text_files import read_corpus
from tests.conftest import make_space
from tests.datasets import test_laion_fmri, test_mosaic
from tests.fuzz import mutations as m
from tests.fuzz.engine import Case
from tests.instructions import test_instructions
from tests.published import Sizes, make_published

GRID = (5, 4, 3)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOXELS = np.argwhere(np.ones(GRID)).astype(np.int32)[::3]
Write = Callable[[Path], Path]


def masker() -> VoxelMasker:
    img = nib.Nifti1Image(np.ones(GRID, np.uint8), AFFINE)
    return VoxelMasker.from_voxel_indices("sub-01", img, VOXELS, {}, {})


# NIfTI


def write_img(name: str, values: np.ndarray, folder: Path) -> Path:
    nib.save(nib.Nifti1Image(values, AFFINE), folder / name)
    return folder / name


def mask_values() -> np.ndarray:
    values = np.zeros(GRID, np.uint8)
    values[1:, 1:] = 1
    return values


def write_betas_img(name: str, folder: Path) -> Path:
    img = nib.Nifti1Image(np.arange(60 * 6, dtype=np.int16).reshape(*GRID, 6), AFFINE)
    img.header.set_slope_inter(0.5, 40)
    nib.save(img, folder / name)
    return folder / name


def write_upload(target: str, folder: Path) -> Path:
    """A scan as it is sent to the server."""
    write_img("mask.nii.gz", mask_values(), folder).rename(folder / "mask")
    name = "volume.nii.gz" if target.endswith("gz") else "volume.nii"
    img = nib.Nifti1Image(np.arange(60 * 9, dtype=np.int16).reshape(*GRID, 9), AFFINE)
    nib.save(img, folder / name)
    (folder / name).rename(folder / "volume")
    return folder / target.partition(".")[0]


def read_upload(folder: Path) -> object:
    limits = ScanLimits(2**24, 512, 4096, 500_000, 2**32, 60, False, {})
    return scan_reader.read_scan(folder, limits)


def write_atlas(target: str, folder: Path) -> Path:
    write_img("mask.nii.gz", mask_values(), folder)
    labels = (np.arange(60).reshape(GRID) % 3).astype(np.int16)
    write_img("atlas-A_dseg.nii.gz", labels, folder)
    table = pd.DataFrame({"index": [1, 2], "name": ["V1", "V2"]})
    table.to_csv(folder / "atlas-A_dseg.tsv", sep="\t", index=False)
    return folder / target


def read_atlas(folder: Path) -> object:
    return VoxelMasker.from_mask_img(
        folder / "mask.nii.gz", {"A": folder / "atlas-A_dseg.nii.gz"}, subject="x"
    )


def write_transform(folder: Path) -> Path:
    places = np.random.default_rng(0).uniform(20, 150, (*GRID, 3)).astype(np.float32)
    return write_img("MNI.nii.gz", places, folder)


def write_ctab(folder: Path) -> Path:
    (folder / "A.ctab").write_text("0 Unknown 0 0 0 0\n1 OFA 1 1 1 0\n2 FFA-1 2 2 2 0\n")
    return folder / "A.ctab"


# HDF5 and pickles


def write_nsd_session(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    betas = rng.integers(-3000, 3000, (nsd.TRIALS, *GRID[::-1])).astype(np.int16)
    with h5py.File(folder / "betas_session01.hdf5", "w") as file:
        file.create_dataset("betas", data=betas, chunks=(nsd.TRIALS, 1, 1, 1))
    return folder / "betas_session01.hdf5"


def write_mosaic(folder: Path) -> Path:
    return test_mosaic.write_person(folder, "sub-01", "NSD")


def read_mosaic(folder: Path) -> object:
    file = folder / "sub-01_NSD.hdf5"
    source = mosaic.MOSAICSubjectFile("sub-01_NSD", "NSD", file)
    with open_hdf5(file, "of MOSAIC") as content:
        trials, _ = mosaic.read_trials(source, content)
        mosaic.read_ncsnr(source, content, trials)
    return mosaic.read_betas(file, trials["key"].tolist(), np.array([0, 40000, 91281]))


def write_glmsingle(name: str, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(*GRID, 4)).astype(np.float32)
    file = folder / name
    if file.suffix == ".npy":
        np.save(file, np.array({"betasmd": values, "R2": values[..., 0], "pcnum": 3, "x": None}))
    elif file.suffix == ".mat":
        with h5py.File(file, "w", userblock_size=512) as content:
            chunks = (3, *GRID[::-1])
            content.create_dataset("modelmd", data=values.T, chunks=chunks, compression="gzip")
    else:
        with h5py.File(file, "w") as content:
            content.create_dataset("betasmd", data=values, fletcher32=True)
            content.create_dataset("noisepool", data=h5py.Empty("f"))
    return file


def write_design_info(name: str, folder: Path) -> Path:
    file = folder / name
    if file.suffix == ".npy":
        np.save(file, np.array({"stimorder": [0, 1, 0, 1], "numtrialrun": [4]}))
    else:
        with h5py.File(file, "w", userblock_size=512) as content:
            content["stimorder"] = np.array([[1.0], [2.0], [1.0], [2.0]])
    return file


def read_glmsingle(name: str, folder: Path) -> object:
    output = glmsingle.GLMsingleOutput(folder / name)
    n_trials = output.shape()[-1]
    voxels = glmsingle.locate_voxels(output, ["a", "b"] * (n_trials // 2), masker(), None)
    return output.read(voxels, 0, n_trials)


def read_design_info(name: str, folder: Path) -> object:
    file = folder / name
    output = glmsingle.GLMsingleOutput(file.with_name(f"TYPED{file.suffix}"))
    return glmsingle.check_design(output, ["a", "b", "a", "b"])


def write_design_table(name: str, folder: Path) -> Path:
    table = pd.DataFrame(
        {
            "subject": ["sub-01", "sub-01", "sub-02"],
            "file": ["a", "a", "b"],
            "stimulus": ["dog", "cat", "dog"],
            "session": ["1", "1", "1"],
            "repetition": [0, 0, 1],
            "coco_id": [9, 25, 9],
            "caption": ["a dog", "a cat, sitting", None],
        }
    )
    table.to_csv(folder / name, sep="\t" if name.endswith(".tsv") else ",", index=False)
    return folder / name


def read_design_table(name: str, folder: Path) -> object:
    reader = glmsingle.GLMsingleReader(folder, design=folder / name)
    trials = {subject: reader.read_trials(subject) for subject in reader.select_subjects()}
    return reader.assign_splits(trials, 0.0, 0), reader.read_conversations(trials)


def write_nsd0(folder: Path) -> Path:
    (folder / "nsd0").mkdir()
    file = folder / "nsd0" / "subject_1.h5"
    with h5py.File(file, "w") as content:
        for split in ("train", "test"):
            for key in range(3):
                trial = content.create_group(f"{split}/{key}")
                trial["visual_voxels"] = np.arange(len(VOXELS), dtype=np.float32)
                trial["coco_id"], trial["prev_coco_id"] = 9 + key, key - 1
    return file


def read_nsd0(folder: Path) -> object:
    layout = HDF5Layout(folder)
    trials = layout.read_trials("subj01")
    trials = mindllm_release.name_stimuli(trials, None, folder / "x.csv")
    return layout.read_betas("subj01", trials, VOXELS)


def write_mindeye(target: str, folder: Path) -> Path:
    for split in ("train", "val", "test"):
        into = folder / "webdataset_avg_split" / split / "subj01"
        into.mkdir(parents=True)
        np.save(into / "sample1.nsdgeneral.npy", np.ones((3, len(VOXELS)), np.float16))
        np.save(into / "sample1.coco73k.npy", np.array([7]))
    return into / target


def read_mindeye(folder: Path) -> object:
    layout = MindEyeLayout(folder)
    return layout.read_betas("subj01", layout.read_trials("subj01"), VOXELS)


def write_release_json(folder: Path) -> Path:
    samples = [
        {
            "coco_id": 9,
            "from": "coco-caption",
            "split": "train",
            "unique_key": n,
            "chat": [
                {"role": "user", "content": "<fMRI>\nPlease describe."},
                {"role": "assistant", "content": f"a dog {n}"},
            ],
            "answers": [["a dog", "dog"], "a cat"],
        }
        for n in range(3)
    ]
    samples.append(samples[0] | {"sample_id": "subject_1-train-0"})
    del samples[-1]["coco_id"]
    (folder / "coco-caption.json").write_text(json.dumps(samples))
    return folder / "coco-caption.json"


def read_release_json(folder: Path) -> object:
    table = pd.DataFrame({"coco_id": [9], "stimulus": ["9"], "split": ["train"], "key": ["0"]})
    return mindllm_release.read_conversations(folder, {"subj01": table}, [])


# MATLAB, tables and texts


@cache
def nsd_design_file() -> bytes:
    folder = Path(mkdtemp()) / "nsd"
    write_nsd_design(folder, np.random.default_rng(0))
    content = loadmat(folder / "nsd_expdesign.mat")
    content = {name: value for name, value in content.items() if not name.startswith("__")}
    savemat(folder / "nsd_expdesign.mat", content, do_compression=True)
    return (folder / "nsd_expdesign.mat").read_bytes()


def write_small_mat(folder: Path) -> Path:
    (folder / "nsd_expdesign.mat").write_bytes(nsd_design_file())
    return folder / "nsd_expdesign.mat"


@cache
def nsd_design() -> nsd.NSDExperimentDesign:
    rng = np.random.default_rng(0)
    order, images = rng.permutation(30000) % 10000, np.tile(np.arange(10000), (8, 1))
    return nsd.NSDExperimentDesign(order, images, np.full((40, 12), 62))


def write_nsd_info(folder: Path) -> Path:
    shown = nsd_design().shown_nsd_ids(1)[:30]
    pd.DataFrame(
        {
            "cocoId": np.arange(30) * 3 + 100,
            "cocoSplit": "train2017",
            "nsdId": shown,
            "subject1_rep0": np.arange(30) + 1,
        }
    ).to_csv(folder / "nsd_stim_info_merged.csv")
    return folder / "nsd_stim_info_merged.csv"


def read_nsd_info(folder: Path) -> object:
    file = folder / "nsd_stim_info_merged.csv"
    mindllm_release.read_coco_ids(file, True)
    return nsd.read_coco_ids(file, nsd_design(), [1])


@cache
def laion_files() -> dict[str, bytes]:
    folder = Path(mkdtemp())
    test_laion_fmri.write_laion(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_laion(target: str, folder: Path) -> Path:
    for name, content in laion_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return next(folder.rglob(target))


def read_laion(folder: Path) -> object:
    reader = laion_fmri.LAIONReader(folder, sessions=[1, 2])
    trials = {subject: reader.read_trials(subject) for subject in reader.select_subjects()}
    trials = reader.assign_splits(trials, 0.0, 0)
    return reader.read_conversations(trials)


def read_laion_masker(subject: str, folder: Path) -> object:
    reader = laion_fmri.LAIONReader(folder, sessions=[1], subjects=[subject])
    space = reader.load_masker(subject, pd.DataFrame())
    reader.read_ncsnr(space)
    betas, _ = reader.files(subject).session(1)
    return laion_fmri.read_betas(space, betas, [0, 2], "float32")


def read_xfm(name: str, folder: Path) -> object:
    transforms.read_transform(folder / name)
    return transforms.scanner_to_mni152(VOXELS.astype(float), folder)


def write_xfm(name: str, folder: Path) -> Path:
    rows = "\n".join(" ".join(map(str, row)) for row in test_laion_fmri.TO_305[:3])
    header = "MNI Transform File\n\nTransform_Type = Linear;\nLinear_Transform =\n"
    lta = test_laion_fmri.lta(test_laion_fmri.TO_305)
    (folder / name).write_text(f"{header}{rows};\n" if name.endswith("xfm") else lta)
    return folder / name


def write_bids(target: str, folder: Path) -> Path:
    func = folder / "sub-01" / "func"
    func.mkdir(parents=True)
    stem = "sub-01_task-x_space-MNI152"
    write_img(f"{stem}_desc-brain_mask.nii.gz", mask_values(), func)
    write_betas_img(f"{stem}_stat-effect_desc-SingletrialBetas_statmap.nii.gz", func)
    trials = pd.DataFrame(
        {"volume": range(6), "stimulus": list("abcabc"), "run": "1", "caption": "a dog"}
    )
    trials.to_csv(func / "sub-01_task-x_desc-SingletrialBetas_trials.tsv", sep="\t", index=False)
    (folder / "stimuli").mkdir()
    captions = pd.DataFrame({"stimulus": list("abc"), "caption": ["a dog", "a cat", "a bus"]})
    captions.to_csv(folder / "stimuli" / "captions.tsv", sep="\t", index=False)
    description = {"Name": "x", "ReferencesAndLinks": ["y"], "License": "CC0"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return next(folder.rglob(target))


def read_bids(folder: Path) -> object:
    reader = bids.BIDSReader(folder)
    trials = {subject: reader.read_trials(subject) for subject in reader.select_subjects()}
    trials = reader.assign_splits(trials, 0.0, 0)
    reader.describe(["sub-01"])
    space = reader.load_masker("sub-01", trials["sub-01"])
    for session in reader.session_readers(space, trials["sub-01"], "float32"):
        session.read()
    return reader.read_conversations(trials)


# Instruction sources


@cache
def store() -> Store:
    order = ["known", "above", "below", "twin"] * 2
    ids = [test_instructions.SHOWN[stimulus] for stimulus in order]
    trials = pd.DataFrame({"stimulus": order, "run": "1", "coco_id": ids})
    rng = np.random.default_rng(0)
    subjects = [(make_space("sub-01", 20), rng.normal(size=(8, 20)).astype(np.float32), trials)]
    empty = pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []})
    return write_store(Path(mkdtemp()) / "store", subjects, empty, name="shown")


def write_source(write: Callable[[Path], None], target: str, folder: Path) -> Path:
    write(folder)
    return next(folder.rglob(target))


def read_source(source: str, folder: Path) -> object:
    table = collect(store(), source, [folder])
    return table["turns"].map(lambda turns: [turn["content"] for turn in turns])


SOURCE_FILES: Mapping[str, tuple[str, Sequence[str]]] = {
    "coco-caption": ("coco", ["captions_train2017.json"]),
    "paragraph-caption": ("paragraph", ["paragraphs_v1.json", "image_data.json"]),
    "coco-qa": ("coco_qa", ["questions.txt", "img_ids.txt"]),
    "visual-genome": ("genome_qa", ["question_answers.json"]),
    "vqa-v2": ("vqa", ["*_questions.json", "*_annotations.json"]),
    "ok-vqa": ("ok_vqa", ["*_annotations.json"]),
    "st-vqa": ("st_vqa", ["train_task_1.json"]),
    "tally-qa": ("tally_qa", ["train.json"]),
    "vqa-e": ("vqa_e", ["VQA-E_train_set.json"]),
    "vsr": ("vsr", ["train.jsonl"]),
    "a-okvqa": ("a_okvqa", ["aokvqa_v1p0_train.json"]),
    "fsvqa": ("fsvqa", ["fsvqa_*_annotations.json"]),
    "visdial": ("visdial", ["visdial_1.0_train.json"]),
    "llava": ("llava", ["llava_instruct_150k.json"]),
    "lvis": ("lvis", ["lvis_instruct4v_220k.json"]),
    "gqa": ("gqa", ["train_balanced_questions.json"]),
    "tdiuc": ("tdiuc", ["*_annotations.json"]),
    "caption": ("own", ["captions.tsv"]),
}


def source_cases() -> list[Case]:
    cases = []
    for source, (writer, targets) in SOURCE_FILES.items():
        assert source in SOURCES
        for target in targets:
            kinds = m.TABLE if target.endswith(".tsv") else m.TEXT
            write = bind(write_source, getattr(test_instructions, writer), target)
            kinds = m.JSON if "json" in target else kinds
            cases.append(Case(f"source {source} {target}", write, bind(read_source, source), kinds))
    return cases


# Configurations, scores, checkpoints


def write_yaml(folder: Path) -> Path:
    content = TrainConfig(seed=1, encoder={"num_queries": 8}).model_dump(mode="json")
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def write_corpus(folder: Path) -> Path:
    (folder / "corpus.txt").write_text("a dog runs\na cat\n\nthe bus\n")
    return folder / "corpus.txt"


def write_results(content: Any, folder: Path) -> Path:
    keys = {"a": "red", "b": "two", "c": "no"}
    (folder / "predictions.json").write_text(json.dumps(keys))
    (folder / "references.json").write_text(json.dumps(content))
    return folder / "references.json"


def write_coco_results(folder: Path) -> Path:
    captions = [{"image_id": key, "id": n, "caption": "x"} for n, key in enumerate("abc")]
    write_results({"annotations": captions}, folder)
    results = [{"image_id": key, "caption": "a dog"} for key in "abc"]
    (folder / "predictions.json").write_text(json.dumps(results))
    return folder / "predictions.json"


def read_results(task: str, folder: Path) -> object:
    predictions = tasks.read_keyed(folder / "predictions.json")
    references = tasks.read_keyed(folder / "references.json")
    return tasks.score(predictions, references, task)


def write_boxes(folder: Path) -> Path:
    write_results({"a": {"dog": [[0.1, 0.2, 0.5, 0.9]]}, "b": {"cat": "[0.1,0.2,0.3,0.4]"}}, folder)
    boxes = {"a": {"dog": "a dog [0.1,0.2,0.5,0.9]"}, "b": {"cat": [0, 0, 1, 1]}}
    (folder / "predictions.json").write_text(json.dumps(boxes))
    return folder / "references.json"


TEN = ["red"] * 7 + ["two"] * 3
REFERENCES: Mapping[str, Any] = {
    "vqa": {"a": TEN, "b": TEN, "c": TEN},
    "exact": {"a": ["red", "crimson"], "b": "two", "c": ["no"]},
    "choice": {"a": "A", "b": {"answer": "B", "choices": ["one", "two"]}, "c": "C"},
    "anls": {"a": ["red"], "b": ["two", "2"], "c": ["no"]},
    "count": {"a": 1, "b": "2", "c": [3]},
    "tdiuc": {key: {"type": "color", "answer": "red"} for key in "abc"},
}


def write_published(folder: Path) -> Path:
    sizes = Sizes(queries=4, rank=2, frequencies=2, layers=1, tokens=1, token_width=2, llm_width=3)
    make_published(folder, [1], {"A": 2}, sizes)
    return folder / "model.ckpt"


def read_published(folder: Path) -> object:
    checkpoint = checkpoint_tensors.read_checkpoint(folder / "model.ckpt")
    dims = checkpoint_tensors.infer_dims(checkpoint)
    checkpoint_tensors.check_tensors(checkpoint, dims)
    return dims.config()


def write_resume(folder: Path) -> Path:
    history = [{"step": 1, "stage": "alignment", "loss": 0.5, "val_loss": None, "val_x": 0.2}]
    content = {
        "step": 1,
        "history": history,
        "best_val_loss": {"alignment": 0.5},
        "fingerprint": {"a": 1},
    }
    tensors = {"weights/w": torch.ones(3), "best/w": torch.ones(3), "step/w": torch.zeros(1)}
    save_file(tensors, folder / "state.safetensors", {METADATA_KEY: json.dumps(content)})
    return folder / "state.safetensors"


def write_statistics(folder: Path) -> Path:
    ones = np.ones((2, 5), np.float32)
    with (folder / "statistics.npz").open("wb") as file:
        np.savez(file, sessions=np.array(["1", "2"]), mean=ones, std=ones, fitted_on=np.array("x"))
    return folder / "statistics.npz"


def write_voxels(target: str, folder: Path) -> Path:
    (folder / "sub-01").mkdir()
    space = masker()
    labels = {"A": np.ones(len(space), np.int32)}
    space = VoxelMasker.from_voxel_indices(
        "sub-01", nib.Nifti1Image(np.ones(GRID), AFFINE), VOXELS, labels, {"A": {1: "V1"}}
    )
    save_masker(space, folder / "sub-01", {"ncsnr": np.ones(len(space), np.float32)})
    return folder / "sub-01" / target


def read_voxels(folder: Path) -> object:
    load_voxel_column(folder / "sub-01", "ncsnr")
    return load_masker(folder / "sub-01", {"A": {1: "V1"}})


def write_anatomy(name: str, folder: Path) -> Path:
    test_mosaic.write_anatomy(folder)
    return folder / grayordinates.FILES[name]


def gifti_mutations() -> tuple[m.Mutation, ...]:
    return (*m.TEXT[:3], *m.BYTES)


def build_cases() -> list[Case]:
    values = mask_values()
    glm = "TYPED_FITHRF_GLMDENOISE_RR"
    nifti = [
        Case(
            f"nifti mask {suffix}",
            bind(write_img, f"mask{suffix}", values),
            bind(
                lambda suffix, folder: VoxelMasker.from_mask_img(folder / f"mask{suffix}"), suffix
            ),
            kinds,
        )
        for suffix, kinds in ((".nii", m.NIFTI), (".nii.gz", m.NIFTI_GZ))
    ] + [
        Case(
            f"nifti betas {suffix}",
            bind(write_betas_img, f"betas{suffix}"),
            bind(lambda suffix, folder: masker().transform(folder / f"betas{suffix}"), suffix),
            kinds,
        )
        for suffix, kinds in ((".nii", m.NIFTI), (".nii.gz", m.NIFTI_GZ))
    ]
    nifti += [
        Case(f"uploaded {name}", bind(write_upload, name), read_upload, kinds, names_file=False)
        for name, kinds in (
            ("volume.nii", m.NIFTI), ("volume.nii.gz", m.NIFTI_GZ), ("mask.nii.gz", m.NIFTI_GZ),
        )
    ]  # fmt: skip
    nifti += [
        Case("atlas image", bind(write_atlas, "atlas-A_dseg.nii.gz"), read_atlas, m.NIFTI_GZ),
        Case("atlas table", bind(write_atlas, "atlas-A_dseg.tsv"), read_atlas, m.TABLE),
        Case(
            "nsd transform",
            write_transform,
            lambda folder: nsd.read_mni_coords(folder / "MNI.nii.gz", masker()),
            m.NIFTI_GZ,
        ),
        Case("nsd ctab", write_ctab, lambda folder: load_parcel_names([folder], "A", 3), m.TEXT),
    ]
    hdf5 = [
        Case(
            "nsd session",
            write_nsd_session,
            lambda folder: nsd.read_betas(
                folder / "betas_session01.hdf5", GRID, VOXELS, "float32"
            ),
            m.HDF5,
        ),
        Case("mosaic", write_mosaic, read_mosaic, m.HDF5),
        Case("release nsd0", write_nsd0, read_nsd0, m.HDF5),
        *(
            Case(f"glmsingle {suffix}", bind(write_glmsingle, glm + suffix),
                 bind(read_glmsingle, glm + suffix), m.PICKLE if suffix == ".npy" else m.HDF5)
            for suffix in glmsingle.SUFFIXES
        ),
        *(
            Case(f"glmsingle {name}", bind(write_design_info, name),
                 bind(read_design_info, name), m.PICKLE if name.endswith("npy") else m.HDF5)
            for name in ("DESIGNINFO.mat", "DESIGNINFO.npy")
        ),
    ]  # fmt: skip
    arrays = [
        Case("nsd design", write_small_mat,
             lambda folder: nsd.NSDExperimentDesign.read(folder / "nsd_expdesign.mat"), m.MAT),
        Case("mindeye betas", bind(write_mindeye, "sample1.nsdgeneral.npy"), read_mindeye, m.NPY),
        Case("mindeye number", bind(write_mindeye, "sample1.coco73k.npy"), read_mindeye, m.NPY),
        Case("scaler", write_statistics,
             lambda folder: SessionScaler.load(folder / "statistics.npz"), m.NPZ),
        Case("voxels parquet", bind(write_voxels, "voxels.parquet"), read_voxels, m.PARQUET),
        Case("voxels mask", bind(write_voxels, "mask.nii.gz"), read_voxels, m.NIFTI_GZ),
        Case("published checkpoint", write_published, read_published, m.ZIP),
        Case("training state", write_resume,
             lambda folder: load_checkpoint(folder / "state.safetensors", {"a": 1}),
             m.SAFETENSORS),
        Case("surface", bind(write_anatomy, "left"), grayordinates.load_grayordinates,
             gifti_mutations()),
        Case("cifti areas", bind(write_anatomy, "areas"), grayordinates.load_grayordinates,
             (*m.BYTES, *m.TEXT[:2])),
        Case("cifti voxels", bind(write_anatomy, "voxels"), grayordinates.load_grayordinates,
             m.NIFTI_GZ),
    ]  # fmt: skip
    laion_betas = "sub-01_ses-01_*_statmap.nii.gz"
    texts = [
        *(
            Case(f"design {suffix}", bind(write_design_table, f"design{suffix}"),
                 bind(read_design_table, f"design{suffix}"), m.TABLE)
            for suffix in (".tsv", ".csv")
        ),
        Case("release json", write_release_json, read_release_json, m.JSON),
        Case("nsd info", write_nsd_info, read_nsd_info, m.TABLE),
        *(
            Case(f"laion {target}", bind(write_laion, target), read_laion, m.TABLE)
            for target in ("sub-01_ses-01_*trials.tsv", laion_fmri.METADATA, laion_fmri.CAPTIONS)
        ),
        *(
            Case(f"laion {target}", bind(write_laion, target),
                 bind(read_laion_masker, "sub-01"), m.NIFTI_GZ)
            for target in (laion_betas, "sub-01_*Noiseceiling12rep*", "sub-01_*label-FFA-1*")
        ),
        *(
            Case(f"transform {name}", bind(write_xfm, name), bind(read_xfm, name), m.TEXT)
            for name in ("talairach.xfm", "talairach.lta")
        ),
        *(
            Case(f"bids {target}", bind(write_bids, target), read_bids, kinds)
            for target, kinds in (
                ("*trials.tsv", m.TABLE), ("captions.tsv", m.TABLE),
                ("dataset_description.json", m.JSON), ("*statmap.nii.gz", m.NIFTI_GZ),
                ("*mask.nii.gz", m.NIFTI_GZ),
            )
        ),
        Case("training options", write_yaml,
             lambda folder: read_config(folder / "train.yaml", {}).encoder_config(), m.TEXT),
        Case("corpus", write_corpus, lambda folder: read_corpus(folder / "corpus.txt"), m.TEXT),
        *(
            Case(f"score {task}", bind(write_results, content), bind(read_results, task), m.JSON,
                 names_file=False)
            for task, content in REFERENCES.items()
        ),
        Case("score coco", write_coco_results, bind(read_results, "exact"), m.JSON,
             names_file=False),
        Case("score grounding", write_boxes, bind(read_results, "grounding"), m.JSON,
             names_file=False),
    ]  # fmt: skip
    return [*nifti, *hdf5, *arrays, *texts, *source_cases()]


CASES = {case.name: case for case in build_cases()}
