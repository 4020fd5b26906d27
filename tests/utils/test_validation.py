"""Checks of arrays, format numbers and options."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from mindllm.utils.errors import InputError
from mindllm.utils.files import write_json
from mindllm.utils.validation import check_finite, check_format, check_values, validate_model


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seed: int = 0


def test_finite_betas_pass_and_others_are_counted() -> None:
    betas = np.zeros((3, 4))
    check_finite(betas, "here")
    betas[1, 2] = betas[2, 2] = np.nan
    with pytest.raises(InputError, match=r"here holds NaN .* in 1 of 4 voxels .* concerned: 1\)"):
        check_finite(betas, "here")


def test_values_have_one_number_per_voxel() -> None:
    check_values(np.zeros(4), 4, "sub-01")
    check_values(np.zeros((3, 4)), 4, "sub-01")
    with pytest.raises(InputError, match=r"expected \(4,\) or \(trials, 4\)"):
        check_values(np.zeros((3, 5)), 4, "sub-01")


def test_other_formats_are_refused_with_the_remedy() -> None:
    check_format(Path("store"), "store", 2, 2, "Prepare it again.")
    with pytest.raises(InputError, match=r"store format 1; .* reads 2. Prepare it again"):
        check_format(Path("store"), "store", 1, 2, "Prepare it again.")
    with pytest.raises(InputError, match=r"store format 3; .* Upgrade mindllm"):
        check_format(Path("store"), "store", 3, 2, "Prepare it again.")


def test_unknown_options_are_named() -> None:
    assert validate_model(Options, {"seed": 3}, "here").seed == 3
    with pytest.raises(InputError, match=r"here: seeds: .* found 3"):
        validate_model(Options, {"seeds": 3}, "here")


def test_json_is_valid_whatever_the_numbers(tmp_path: Path) -> None:
    content = {"a": float("nan"), "b": [1.5, -float("inf"), (float("inf"), "NaN")], "c": None}
    write_json(tmp_path / "file.json", content)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    text = (tmp_path / "file.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "a": None,
        "b": [1.5, None, [None, "NaN"]],
        "c": None,
    }
