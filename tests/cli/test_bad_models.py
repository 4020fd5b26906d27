"""Models that were written with bad content: refused in one line, and left as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.bad_input import (
    Case,
    Change,
    column,
    entry,
    image,
    table,
    tensor,
    tensors,
    text,
    twice,
)

CONFIG = [
    Case("list", "", text("[]"), "expected dict"),
    Case("format", "", entry("format", value="3"), "model format '3'"),
    Case("version", "", entry("version", value=1), "version: .*found 1"),
    Case("unknown", "", entry("optimizer", value=1), "optimizer: Extra inputs"),
    Case("no encoder", "", entry("encoder"), "encoder: Field required"),
    Case("encoder", "", entry("encoder", value=[1]), r"encoder: .*found \[1\]"),
    Case("key", "", entry("encoder", "n_layers", value=3), "encoder.n_layers: Extra inputs"),
    Case("text", "", entry("encoder", "num_queries", value="16"), "num_queries: .*found '16'"),
    Case("below", "", entry("encoder", "num_queries", value=-1), "num_queries: .*found -1"),
    Case("half", "", entry("encoder", "key_dim", value=0.5), "key_dim: .*found 0.5"),
    Case("NaN", "", entry("encoder", "dropout", value=float("nan")), "dropout: "),
    Case("dropout", "", entry("encoder", "dropout", value=1.5), "dropout: .*found 1.5"),
    Case("huge", "", entry("encoder", "num_queries", value=10**12), "num_queries: .*less than"),
    Case("memory", "", entry("encoder", "hidden_size", value=10**6), "GiB|expected"),
    Case("tokens", "", entry("encoder", "num_fmri_tokens", value=10**6), "GiB|expected"),
    Case("system", "", entry("encoder", "coordinate_system", value="tal"), "found 'tal'"),
    Case("other", "", entry("encoder", "num_queries", value=8), "num_queries=8"),
    Case("no llm", "", entry("language_model"), "language_model: Field required"),
    Case("llm", "", entry("language_model", value="gpt"), "language_model: .*'gpt'"),
    Case("llm name", "", entry("language_model", "name", value=""), "language_model.name: "),
    Case("llm 3", "", entry("language_model", "name", value=3), "language_model.name: .*found 3"),
    Case("llm key", "", entry("language_model", "size", value=3), "language_model.size: "),
    Case("template", "", entry("language_model", "chat_template", value=1), "chat_template: .* 1"),
    Case("sentences", "", entry("sentence_encoder", value=1), "sentence_encoder: .*found 1"),
    Case("card", "", entry("model_card", value=[]), r"model_card: .*found \[\]"),
    Case("card key", "", entry("model_card", "author", value=""), "model_card.author: "),
    Case("subjects", "", entry("model_card", "subjects", value="all"), "subjects: .*'all'"),
    Case("subject", "", entry("model_card", "subjects", value=[1]), "subjects.0: .*found 1"),
    Case("seed", "", entry("model_card", "seed", value="1"), "model_card.seed: .*'1'"),
    Case("answers", "", entry("model_card", "answers", value={"a": "b"}), "answers.a: .*'b'"),
    Case("results", "", entry("model_card", "results", value=[{}]), "results.0.subject: "),
    Case("split", "", entry("model_card", "split", value="test"), "split: .*'test'"),
    Case("started", "", entry("model_card", "started_from", value={"x": 1}), "started_from.x: "),
]
PARCELS = [
    Case("list", "", text("[]"), "expected dict"),
    Case("numbers", "", entry("visual", value={"1": "V1"}), "visual: "),
    Case("name", "", entry("visual", 0, value=3), "visual.0: .*found 3"),
    Case("empty", "", entry("visual", 0, value=""), "visual.0: .*found ''"),
    Case("twice", "", entry("visual", 0, value="V2"), "visual has the parcel 'V2' twice"),
    Case("dot", "", entry("a.b", value=["V1"]), r"'a\.b'"),
    Case("method", "", entry("train", value=["V1"]), "'train'"),
    Case("coordinate", "", entry("i", value=["V1"]), "'i'"),
    Case("more", "", entry("more", value=["V1"]), "does not fit config.json"),
    Case("fewer", "", entry("lobes"), "does not fit config.json|lobes"),
    Case("none", "", text("{}"), "does not fit"),
]


def put(index: Any, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy of a tensor with another value."""

    def edit(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[index] = value
        return values

    return edit


def of_encoding(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Another tensor of the encoding model."""
    return tensor(f"encoding_model.{name}", edit)


def drop(name: str) -> Change:
    """No such tensor."""
    return tensors(lambda content: content.pop(name))


WEIGHTS = [
    Case("no queries", "", drop("encoder.queries"), r"encoder.queries: expected \(16, 24\)"),
    Case("no null", "", drop("null_tokens"), r"null_tokens: expected \(3, 8\), found None"),
    Case("no bias", "", drop("projector.bias"), r"projector.bias: expected \(32,\)"),
    Case("extra", "", tensors(lambda c: c.update(extra=torch.ones(2))), "extra: expected None"),
    Case("more", "", tensors(lambda c: c.update({"encoder.x": torch.ones(2)})), "encoder.x"),
    Case("shape", "", tensor("encoder.queries", lambda t: t[1:]), r"found \(15, 24\)"),
    Case("turned", "", tensor("encoder.queries", lambda t: t.T), r"found \(24, 16\)"),
    Case("1-D", "", tensor("null_tokens", lambda t: t.flatten()), r"found \(24,\)"),
    Case("int", "", tensor("encoder.queries", lambda t: t.long()), "whole numbers"),
    Case("bool", "", tensor("null_tokens", lambda t: t > 0), "whole numbers"),
    Case("NaN", "", tensor("encoder.queries", put((0, 0), float("nan"))), "NaN or infinite"),
    Case("inf", "", tensor("projector.weight", put((0, 0), float("inf"))), "NaN or infinite"),
    Case("no tensor", "", tensors(lambda content: content.clear()), "does not fit"),
    Case("no file", "", text("weights"), "damaged"),
    Case("part", "", drop("encoding_model.basis"), "without encoding_model.basis"),
    Case("basis", "", of_encoding("basis", lambda t: t[1:]), r"basis has shape"),
    Case("rank", "", of_encoding("center", lambda t: t[1:]), r"center has shape"),
    Case("queries", "", of_encoding("query_mean", lambda t: t[1:]), r"query_mean .*\(15,\)"),
    Case("text", "", of_encoding("text_center", lambda t: t[1:]), r"text_embeddings has shape"),
    Case("signal", "", of_encoding("signal", lambda t: t[:2]), r"signal has shape \(2,"),
    Case("signal -1", "", of_encoding("signal", put((0, 0), -1)), "signal holds -1"),
    Case("std", "", of_encoding("query_std", put(3, 0)), "query_std holds 0; .*above 0"),
    Case("std NaN", "", of_encoding("query_std", put(3, float("nan"))), "NaN or infinite"),
    Case("counts", "", of_encoding("stimulus_counts", put(0, 0)), "stimulus_counts holds 0"),
    Case("texts", "", of_encoding("stimulus_texts", put(0, 9)), "stimulus_texts holds 9"),
    Case("texts -1", "", of_encoding("stimulus_texts", put(0, -1)), "stimulus_texts holds -1"),
    Case("texts half", "", of_encoding("stimulus_texts", lambda t: t / 2), "torch.int64"),
    Case("counts int", "", of_encoding("stimulus_counts", lambda t: t.long()), "torch.int64"),
    Case("temperature", "", of_encoding("temperature", torch.zeros_like), "temperature holds 0"),
    Case("gain", "", of_encoding("regression_gain", lambda t: t - 100), "regression_gain holds -"),
    Case("labels", "", of_encoding("label_gain", lambda t: t - 300), "label_gain holds -"),
    Case("1", "", of_encoding("temperature", lambda t: t[None]), r"temperature has shape \(1,\)"),
]
VOXELS = [
    Case("no k", "", column("k"), "`k`"),
    Case("twice", "", twice("visual"), "the column 'visual' twice"),
    Case("outside", "", column("j", 10, rows=2), r"row 2.*10.*\(12, 10, 8\)"),
    Case("parcel", "", column("visual", 7, rows=2), "row 2: visual is 7"),
    Case("below", "", column("visual", -7, rows=2), "row 2: visual is -7"),
    Case("NaN", "", column("z_mm", np.nan, rows=2), "row 2: z_mm is nan"),
    Case("none", "", table(lambda frame: frame.head(0)), "no voxel"),
]
MASK = [Case("other", "", image(np.ones_like), "other voxels")]
FILES = {
    "model/config.json": CONFIG,
    "model/regions.json": PARCELS,
    "model/model.safetensors": WEIGHTS,
    "model/spaces/sub-01/voxels.parquet": VOXELS,
    "model/spaces/sub-01/mask.nii.gz": MASK,
}
DECODE = "decode model scan.nii --mask mask.nii --standardized"
CASES = [case._replace(file=file) for file, cases in FILES.items() for case in cases]


def label(value: Any) -> str:
    return f"{Path(value.file).name}-{value.name}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_bad_model_is_refused(refuse: Callable[[Case, str], None], case: Case) -> None:
    refuse(case, DECODE)


def test_a_bad_adapter_is_refused(refuse: Callable[[Case, str], None]) -> None:
    def change(file: Path) -> None:
        file.mkdir()
        (file / "adapter_config.json").write_text(json.dumps({"peft_type": "MAGIC"}))

    case = Case("adapter", "model/adapter", change, "adapter is missing, damaged")
    refuse(case, DECODE)
