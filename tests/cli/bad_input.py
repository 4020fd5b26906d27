"""Good stores, models and reports, and what makes them bad: helpers of the tables of bad input."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from mindllm import cli
from mindllm.cli import options
from mindllm.data.resplit import create_split
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.language.conversation import build_conversation
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.language_model import load_language_model
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from tests.conftest import REGIONS, TEXTS, TINY_CONFIG, make_space
from tests.report.example import make_result

Change = Callable[[Path], object]
REMOVED = object()
SUBJECT = "subjects/sub-02"
STIMULI = [f"stim{i}" for i in range(len(TEXTS))]


class Case(NamedTuple):
    """A change of one file, and what the message says beside the name of the file."""

    name: str
    file: str
    change: Change
    message: str


class Run(NamedTuple):
    """How a command ended."""

    status: int
    error: str


def make_store(path: Path) -> None:
    """Three subjects of four trials per stimulus, of which one stimulus tests; another split."""
    rng, subjects = np.random.default_rng(0), []
    for n in range(3):
        space = make_space(f"sub-{n + 1:02d}", 40, seed=n)
        shown = np.tile(STIMULI, 4)
        trials = pd.DataFrame(
            {
                "stimulus": shown,
                "session": np.repeat(["1", "2"], len(shown) // 2),
                "split": np.where(shown == "stim5", "test", "train"),
            }
        )
        betas = rng.normal(100, 5, (len(shown), len(space))).astype(np.float32)
        subjects.append((space, betas, trials))
    captions = conversations_from_captions(pd.DataFrame({"stimulus": STIMULI, "caption": TEXTS}))
    turns = build_conversation("how many?", "two")
    rows = {"subject": ["sub-01"], "trial_index": [3], "source": ["count"]}
    single = pd.DataFrame(rows | {"turns": [turns], "answers": [["two"]]})
    store = write_store(
        path,
        subjects,
        pd.concat([captions, single], ignore_index=True),
        name="tiny",
        stimulus_sets={"shared": STIMULI[:2]},
    )
    create_split(store, "other", "stimulus", fractions={"test": 0.34})


def make_model(path: Path, language_model: Path) -> None:
    """A model with an encoding model, a masker and a model card."""
    torch.manual_seed(0)
    names = {atlas: list(parcels.values()) for atlas, parcels in REGIONS.items()}
    model = MindLLM(TINY_CONFIG, names, load_language_model(language_model)).eval()
    model.maskers = {"sub-01": make_space("sub-01", 40)}
    numbers = torch.arange(len(TEXTS)).repeat(8)
    response = torch.randn(len(TEXTS), TINY_CONFIG.num_queries)
    features = {
        f"sub-0{n}": SubjectFeatures(response[numbers] + torch.randn(48, 16), numbers)
        for n in (1, 2)
    }
    model.encoding_model = fit_encoding_model(features, torch.randn(len(TEXTS), 12))
    model.sentence_encoder = "nowhere/encoder"
    model.model_card = ModelCard(subjects=["sub-01"], stimuli=STIMULI, store="tiny", seed=1)
    model.save_pretrained(path)


def make_inputs(folder: Path, language_model: Path) -> None:
    """Everything that a command can be given."""
    make_store(folder / "store")
    make_model(folder / "model", language_model)
    make_result().save(folder / "report")
    make_result().save(folder / "other-report")
    space = make_space("sub-01", 40)
    betas = np.random.default_rng(1).normal(size=(12, 40)).astype(np.float32)
    nib.save(space.inverse_transform(betas), folder / "scan.nii")
    nib.save(space.inverse_transform(np.ones(40, np.uint8)), folder / "mask.nii")
    (folder / "texts.json").write_text(json.dumps({"a": "a dog", "b": "a cat"}))


def run_command(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["mindllm", *words.split()])
    monkeypatch.setattr(options.errors, "width", 400)
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        root.handlers[:], root.level = handlers, level
    return Run(int(end.value.code or 0), capsys.readouterr().err)


def checksums(folder: Path) -> dict[str, str]:
    """Name, size and checksum of every file and folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


# Changes of files.


def text(content: str) -> Change:
    """Other content."""
    return lambda file: file.write_text(content, encoding="utf-8")


def entry(*keys: str | int, value: Any = REMOVED) -> Change:
    """Another value in a JSON file, or none."""

    def change(file: Path) -> None:
        content = json.loads(file.read_text(encoding="utf-8"))
        part = content
        for key in keys[:-1]:
            part = part[key]
        if value is REMOVED:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value
        file.write_text(json.dumps(content), encoding="utf-8")

    return change


def line(**values: Any) -> Change:
    """Other values in the second line of a file of JSON lines."""

    def change(file: Path) -> None:
        lines = file.read_text(encoding="utf-8").split("\n")
        record = json.loads(lines[1])
        for name, value in values.items():
            record[name] = value
            if value is REMOVED:
                del record[name]
        lines[1] = json.dumps(record)
        file.write_text("\n".join(lines), encoding="utf-8")

    return change


def table(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Change:
    """Another table in a Parquet file."""
    return lambda file: edit(pd.read_parquet(file)).to_parquet(file)


def column(name: str, value: Any = REMOVED, rows: Any = None) -> Change:
    """Another column, or other values in some of its rows, or no such column."""

    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        if value is REMOVED:
            return frame.drop(columns=name)
        if rows is None:
            return frame.assign(**{name: value})
        values = frame[name].tolist()
        values[rows] = value
        return frame.assign(**{name: values})

    return table(edit)


def dtype(name: str, kind: str) -> Change:
    """A column of another type."""
    return table(lambda frame: frame.astype({name: kind}))


def twice(name: str) -> Change:
    """A column that is there twice."""

    def change(file: Path) -> None:
        content = pq.read_table(file)
        columns = [*content.columns, content[name]]
        pq.write_table(pa.Table.from_arrays(columns, [*content.column_names, name]), file)

    return change


def conversations(edit: Callable[[list[dict[str, Any]]], object]) -> Change:
    """Other rows of conversations."""

    def change(file: Path) -> None:
        content = pq.read_table(file)
        rows = content.to_pylist()
        edit(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=content.schema), file)

    return change


def conversation(**values: Any) -> Change:
    """Other values in the second conversation."""
    return conversations(lambda rows: rows[1].update(values))


def arrow_column(name: str, values: pa.Array | None = None) -> Change:
    """A column of conversations of another type; None: no such column."""

    def change(file: Path) -> None:
        content = pq.read_table(file)
        n = content.column_names.index(name)
        content = content.remove_column(n)
        if values is not None:
            content = content.append_column(name, values)
        pq.write_table(content, file)

    return change


def array(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another array in a .npy file."""
    return lambda file: np.save(file, edit(np.load(file)))


def arrays(**edits: Any) -> Change:
    """Other arrays in an .npz file: functions of the old ones, new ones, or none."""

    def change(file: Path) -> None:
        with np.load(file) as content:
            parts = dict(content)
        for name, edit in edits.items():
            parts[name] = edit(parts[name]) if callable(edit) else edit
            if edit is REMOVED:
                del parts[name]
        np.savez(file, **parts)

    return change


def put(index: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A copy of an array with another value."""

    def edit(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index] = value
        return values

    return edit


def announce(shape: tuple[int, ...]) -> Change:
    """The header of an array of another shape, without its numbers."""

    def change(file: Path) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with file.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(bytes(64))

    return change


def image(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Other voxels in a mask."""

    def change(file: Path) -> None:
        img = nib.load(file)
        data = edit(np.asarray(img.dataobj).copy())
        nib.save(nib.Nifti1Image(data, img.affine), file)

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Other tensors in a safetensors file."""

    def change(file: Path) -> None:
        content = load_file(file)
        edit(content)
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)

    return change


def tensor(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Another tensor in a safetensors file."""
    return tensors(lambda content: content.update({name: edit(content[name])}))


def both(*changes: tuple[str, Change]) -> Change:
    """Changes of several files beside each other."""

    def change(file: Path) -> None:
        for name, each in changes:
            each(file.parent / name)

    return change


def without(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A mapping without one of its keys."""
    return {key: value for key, value in mapping.items() if key != name}
