"""Stores that were written with bad content: refused in one line, and left as they are."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mindllm.data.schemas import check_conversations, check_trials_table
from tests.cli.bad_input import (
    REMOVED,
    SUBJECT,
    Case,
    announce,
    array,
    arrays,
    arrow_column,
    both,
    column,
    conversation,
    conversations,
    dtype,
    entry,
    image,
    put,
    table,
    text,
    twice,
)

SET = ("stimulus_sets", "shared")
DATASET = [
    Case("list", "store/dataset.json", text("[3]"), "expected dict"),
    Case("null", "store/dataset.json", text("null"), "expected dict"),
    Case("no name", "store/dataset.json", entry("name"), "name: Field required"),
    Case("name 3", "store/dataset.json", entry("name", value=3), "name: .*string, found 3"),
    Case("name empty", "store/dataset.json", entry("name", value=""), "name: .*at least 1 char"),
    Case("format text", "store/dataset.json", entry("format", value="3"), "store format '3'"),
    Case("no format", "store/dataset.json", entry("format"), "store format None"),
    Case("licence", "store/dataset.json", entry("license", value=[]), r"license: .*found \[\]"),
    Case("source", "store/dataset.json", entry("source", value=None), "source: .*found None"),
    Case("options", "store/dataset.json", entry("options", value=[1]), r"options: .*found \[1\]"),
    Case("z 1", "store/dataset.json", entry("standardized", value=1), "standardized: .*found 1"),
    Case("z no", "store/dataset.json", entry("standardized", value="no"), "standardized: .*'no'"),
    Case("sets", "store/dataset.json", entry("stimulus_sets", value=[]), "stimulus_sets: "),
    Case("set", "store/dataset.json", entry(*SET, value="stim1"), "stimulus_sets.shared: "),
    Case("in set", "store/dataset.json", entry(*SET, value=[1]), "stimulus_sets.shared.0: .* 1"),
    Case("unknown", "store/dataset.json", entry("licence", value="MIT"), "licence: Extra inputs"),
]
PARCELS = [
    Case("list", "store/regions.json", text("[]"), "expected dict"),
    Case("atlas", "store/regions.json", entry("visual", value=["V1"]), "visual: "),
    Case("number", "store/regions.json", entry("visual", "one", value="V9"), "visual.*'one'"),
    Case("zero", "store/regions.json", entry("visual", "0", value="V9"), "visual.*'0'"),
    Case("negative", "store/regions.json", entry("visual", "-1", value="V9"), "visual.*'-1'"),
    Case("half", "store/regions.json", entry("visual", "1.5", value="V9"), "visual.*'1.5'"),
    Case("name 3", "store/regions.json", entry("visual", "1", value=3), "visual.1: .*found 3"),
    Case("no name", "store/regions.json", entry("visual", "1", value=""), "visual.1: .*found ''"),
    Case("x_mm", "store/regions.json", entry("x_mm", value={"1": "a"}), "cannot be called 'x_mm'"),
    Case("one label", "store/regions.json", entry("lobes", "2"), "lobes is 2.*regions.json"),
]
TURNS = [{"role": "user", "content": "what?\n<fMRI>"}, {"role": "assistant", "content": "a dog"}]
CONVERSATIONS = [
    Case("no source", "", arrow_column("source"), "`source`"),
    Case("no turns", "", arrow_column("turns"), "`turns`"),
    Case("no answers", "", arrow_column("answers"), "`answers`"),
    Case("twice", "", twice("source"), "the column 'source' twice"),
    Case("odd type", "", arrow_column("turns", pa.array(["a"] * 7)), "turns.*string"),
    Case("numbers", "", arrow_column("source", pa.array([1] * 7)), "source.*int64"),
    Case("answers", "", arrow_column("answers", pa.array(["a"] * 7)), "answers.*string"),
    Case("trials", "", arrow_column("trial_index", pa.array([0.5] * 7)), "trial_index.*double"),
    Case("role", "", conversation(turns=[TURNS[0], TURNS[0]]), "row 1.*alternates"),
    Case("robot", "", conversation(turns=[{**TURNS[0], "role": "robot"}]), "row 1.*robot"),
    Case("no role", "", conversation(turns=[{**TURNS[0], "role": None}]), "row 1.*None"),
    Case("no text", "", conversation(turns=[{**TURNS[0], "content": None}]), "row 1.*no text"),
    Case("null turn", "", conversation(turns=[None]), "row 1"),
    Case("no turn", "", conversation(turns=[]), "row 1"),
    Case("null turns", "", conversation(turns=None), "row 1.*turns"),
    Case("no scan", "", conversation(turns=[{**TURNS[0], "content": "a"}]), "row 1.*exactly once"),
    Case("scans", "", conversation(turns=[TURNS[0], TURNS[1], TURNS[0]]), "row 1.*exactly once"),
    Case("scan", "", conversation(turns=[TURNS[0], {**TURNS[1], "content": "<fMRI>"}]), "row 1"),
    Case("null source", "", conversation(source=None), "row 1.*source"),
    Case("empty source", "", conversation(source=""), "row 1.*source"),
    Case("no topic", "", conversation(stimulus=None), "row 1.*stimulus"),
    Case("null answers", "", conversation(answers=None), "row 1.*answers"),
    Case("no answer", "", conversation(answers=[]), "row 1.*answers"),
    Case("null answer", "", conversation(answers=["a dog", None]), "row 1.*answers"),
    Case("subject", "", conversations(lambda rows: rows[6].update(subject="sub-99")), "'sub-99'"),
    Case("index", "", conversations(lambda rows: rows[6].update(trial_index=24)), "row 6.*24"),
    Case("below", "", conversations(lambda rows: rows[6].update(trial_index=-1)), "row 6.*-1"),
    Case("no index", "", conversations(lambda rows: rows[6].update(trial_index=None)), "row 6"),
]
TRIALS = [
    Case("no stimulus", "", column("stimulus"), "`stimulus`"),
    Case("no session", "", column("session"), "`session`"),
    Case("no run", "", column("run"), "`run`"),
    Case("no split", "", column("split"), "`split`"),
    Case("no repetition", "", column("repetition"), "`repetition`"),
    Case("twice", "", twice("split"), "the column 'split' twice"),
    Case("unknown split", "", column("split", "dev", rows=3), "row 3.*'dev'"),
    Case("null split", "", column("split", None, rows=3), "row 3.*split"),
    Case("null session", "", column("session", None, rows=3), "row 3.*session"),
    Case("null stimulus", "", column("stimulus", None, rows=3), "row 3.*stimulus"),
    Case("empty stimulus", "", column("stimulus", "", rows=3), "row 3.*stimulus"),
    Case("numbers", "", column("stimulus", range(24)), "stimulus.*int64.*text"),
    Case("sessions", "", column("session", 1.0), "session.*float64.*text"),
    Case("repetition text", "", column("repetition", "a"), "repetition.*whole numbers"),
    Case("repetition half", "", column("repetition", 0.5), "repetition.*whole numbers"),
    Case("repetition -1", "", column("repetition", -1, rows=2), "row 2.*repetition.*-1"),
    Case("two splits", "", column("split", "test", rows=1), "'stim1'.*test.*train"),
    Case("short", "", table(lambda frame: frame.head(20)), r"20 trials|\(20, 40\)"),
    Case("long", "", table(lambda frame: pd.concat([frame, frame])), r"48 trials|\(48, 40\)"),
    Case("empty", "", table(lambda frame: frame.head(0)), "no trial|0 rows"),
]
VOXELS = [
    *(Case(f"no {name}", "", column(name), f"`{name}`") for name in ("i", "j", "k", "x_mm")),
    Case("twice", "", twice("j"), "the column 'j' twice"),
    Case("i half", "", dtype("i", "float64"), "column i.*float64.*whole numbers"),
    Case("i text", "", dtype("i", "str"), "column i.*whole numbers"),
    Case("x text", "", dtype("x_mm", "str"), "column x_mm.*numbers"),
    Case("voxel twice", "", table(lambda f: f.set_axis(f.index).iloc[[0, *range(39)]]), "twice"),
    Case("outside", "", column("i", 12, rows=5), r"row 5.*12.*\(12, 10, 8\)"),
    Case("below", "", column("k", -1, rows=5), r"row 5.*-1.*\(12, 10, 8\)"),
    Case("x NaN", "", column("x_mm", np.nan, rows=5), "row 5.*x_mm.*nan"),
    Case("y inf", "", column("y_mm", np.inf, rows=5), "row 5.*y_mm.*inf"),
    Case("parcel -1", "", column("visual", -1, rows=5), "row 5.*visual.*-1"),
    Case("parcel half", "", dtype("visual", "float64"), "column visual.*float64.*whole numbers"),
    Case("no parcel", "", column("visual", 9, rows=5), "row 5.*visual.*9"),
    Case("parcel null", "", column("visual", None, rows=5), "column visual|row 5.*visual"),
    Case("fewer", "", table(lambda frame: frame.head(39)), r"39|\(24, 39\)"),
    Case("none", "", table(lambda frame: frame.head(0)), "no voxel"),
    Case("ncsnr", "", column("ncsnr", "high"), "column ncsnr.*numbers"),
]
MASKS = [
    Case("shape", "", image(lambda data: np.pad(data, 1)), r"other voxels"),
    Case("4-D", "", image(lambda data: np.stack([data, data], 3)), r"\(12, 10, 8, 2\)"),
    Case("other voxels", "", image(lambda data: 1 - data), "other voxels"),
    Case("empty", "", image(np.zeros_like), "other voxels"),
    Case("one more", "", image(np.ones_like), "other voxels"),
    Case("no image", "", text("hello"), "damaged"),
]
BETAS = [
    Case("rows", "", array(lambda betas: betas[1:]), r"\(23, 40\).*\(24, 40\)"),
    Case("columns", "", array(lambda betas: betas[:, 1:]), r"\(24, 39\).*\(24, 40\)"),
    Case("1-D", "", array(np.ravel), r"\(960,\).*\(24, 40\)"),
    Case("3-D", "", array(lambda betas: betas[None]), r"\(1, 24, 40\).*\(24, 40\)"),
    Case("int", "", array(lambda betas: betas.astype(np.int16)), "int16.*float32"),
    Case("complex", "", array(lambda betas: betas.astype(complex)), "complex128.*float32"),
    Case("text", "", array(lambda betas: betas.astype("U3")), "U3.*float32"),
    Case("object", "", array(lambda betas: betas.astype(object)), "object.*float32"),
    Case("bool", "", array(lambda betas: betas > 0), "bool.*float32"),
    Case("big endian", "", array(lambda betas: betas.astype(">f4")), ">f4.*float32"),
    Case("Fortran", "", array(np.asfortranarray), "Fortran order"),
    Case("huge", "", announce((2**40, 40)), rf"\({2**40}, 40\).*\(24, 40\)"),
    Case("cut", "", announce((24, 40)), r"3840 bytes.* 64|64 .*3840"),
    Case("no array", "", text("betas"), "damaged"),
]
STATISTICS = [
    Case("session", "", both(("trials.parquet", column("session", "9", rows=0))), "'9'"),
    *(Case(f"no {n}", "", arrays(**{n: REMOVED}), f"{n}") for n in ("mean", "std", "sessions")),
    Case("no origin", "", arrays(fitted_on=REMOVED), "fitted_on"),
    Case("voxels", "", arrays(mean=lambda mean: mean[:, 1:]), r"mean.*\(2, 39\).*\(2, 40\)"),
    Case("other", "", arrays(std=lambda std: std[:, :5]), r"std.*\(2, 5\).*\(2, 40\)"),
    Case("rows", "", arrays(std=lambda std: std[:1]), r"std.*\(1, 40\).*\(2, 40\)"),
    Case("std -1", "", arrays(std=put((0, 3), -1)), "std.*below 0"),
    Case("std NaN", "", arrays(std=put((0, 3), np.nan)), "std.*NaN or infinite"),
    Case("mean inf", "", arrays(mean=put((1, 3), np.inf)), "mean.*NaN or infinite"),
    Case("type", "", arrays(mean=lambda mean: mean.astype("U9")), "mean.*U9"),
    Case("session", "", arrays(sessions=np.array(["1", "7"])), "'2'"),
    Case("twice", "", arrays(sessions=np.array(["1", "1"])), "sessions"),
    Case("no archive", "", text("statistics"), "damaged"),
]
OTHER = "store/splits/other"
LEAK = np.where(np.arange(72) % 5, "train", "test")
OF_TRIALS = f"{OTHER}/trials.parquet"
SPLITS = [
    Case("no subject", OF_TRIALS, table(lambda f: f[f["subject"] != "sub-02"]), "sub-02"),
    Case(
        "short", OF_TRIALS, table(lambda f: f[f["trial_index"] < 20]), "20 rows of sub-01.*0 to 23"
    ),
    Case("twice", OF_TRIALS, column("trial_index", 0, rows=3), "24 rows of sub-01"),
    Case("beyond", OF_TRIALS, column("trial_index", 24, rows=3), "from 0 to 24"),
    Case("dev", OF_TRIALS, column("split", "dev", rows=3), "'dev'"),
    Case("null", OF_TRIALS, column("split", None, rows=3), "split"),
    Case("no split", OF_TRIALS, column("split"), "`split`"),
    Case("no index", OF_TRIALS, column("trial_index"), "`trial_index`"),
    Case("no names", OF_TRIALS, column("subject"), "`subject`"),
    Case("no train", OF_TRIALS, column("split", "test"), "train"),
    Case("leak", OF_TRIALS, column("split", LEAK), "two splits"),
    Case("list", f"{OTHER}/split.json", text("[]"), "expected dict"),
    Case("name", f"{OTHER}/split.json", entry("name", value="another"), "'another'.*other"),
    Case("no name", f"{OTHER}/split.json", entry("name"), "name: Field required"),
    Case("rule", f"{OTHER}/split.json", entry("by", value="magic"), "by: .*'magic'"),
    Case("no fractions", f"{OTHER}/split.json", entry("fractions"), "fractions"),
    Case("fractions", f"{OTHER}/split.json", entry("fractions", "test", value="a"), "fractions"),
    Case("counts", f"{OTHER}/split.json", entry("trials", value=3), "trials: .*found 3"),
    Case("from", f"{OTHER}/split.json", entry("from", value=3), "from: .*found 3"),
    Case("mean", f"{OTHER}/sub-02.npz", arrays(mean=REMOVED), "mean"),
    Case("voxels", f"{OTHER}/sub-02.npz", arrays(mean=lambda m: m[:, 1:]), r"\(2, 39\)"),
]
FILES = {
    "store/conversations.parquet": CONVERSATIONS,
    f"store/{SUBJECT}/trials.parquet": TRIALS,
    f"store/{SUBJECT}/voxels.parquet": VOXELS,
    f"store/{SUBJECT}/mask.nii.gz": MASKS,
    f"store/{SUBJECT}/betas.npy": BETAS,
    f"store/{SUBJECT}/statistics.npz": STATISTICS,
}
CASES = [*DATASET, *PARCELS, *SPLITS] + [
    case._replace(file=file) for file, cases in FILES.items() for case in cases
]
Refuse = Callable[[Case, str], None]


def label(value: Any) -> str:
    return f"{Path(value.file).name}-{value.name}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_bad_store_is_refused(refuse: Refuse, case: Case) -> None:
    of_split = " --split-scheme other" if "splits" in case.file else ""
    refuse(case, f"qc store{of_split}")


def test_a_stimulus_in_two_splits_of_two_subjects_is_refused(refuse: Refuse) -> None:
    change = table(lambda frame: frame.assign(split=frame["split"].replace("test", "train")))
    case = Case("leak", f"store/{SUBJECT}/trials.parquet", change, "'stim5': test .sub-01., train")
    refuse(case, "train store --out x")


def test_a_store_of_many_trials_and_conversations_opens_quickly(tmp_path: Path) -> None:
    n_trials, n_rows = 30_000, 200_000
    trials = pd.DataFrame({"stimulus": [f"s{i // 3}" for i in range(n_trials)], "repetition": 0})
    trials = trials.assign(session="1", run="1", split="train")
    turns = [{"role": "user", "content": "what?\n<fMRI>"}, {"role": "assistant", "content": "a"}]
    content = pa.table(
        {"stimulus": ["s1"] * n_rows, "source": ["a"] * n_rows, "turns": [turns] * n_rows}
    )
    content = content.append_column("answers", pa.array([["a"]] * n_rows))
    start = time.perf_counter()
    check_trials_table(trials, "trials", "")
    check_conversations(content, lambda subject: None, tmp_path)
    assert time.perf_counter() - start < 3
