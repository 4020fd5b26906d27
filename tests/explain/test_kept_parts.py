"""Parts that are kept are read, unless they depend on something else."""

from pathlib import Path

import numpy as np
import pytest

from mindllm.explain.kept_parts import KeptParts, hash_parts
from mindllm.utils.errors import InputError


def test_a_part_is_computed_once_for_a_key(tmp_path: Path) -> None:
    kept, calls = KeptParts(tmp_path / "parts"), []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(3) + len(calls)}

    assert kept.get("a", "key", compute)["x"].tolist() == [1, 2, 3]
    again = KeptParts(tmp_path / "parts").get("a", "key", compute)
    assert {name: values.tolist() for name, values in again.items()} == {"x": [1, 2, 3]}
    assert kept.get("a", "other", compute)["x"].tolist() == [2, 3, 4]
    assert kept.get("b", "key", compute)["x"].tolist() == [3, 4, 5]
    (tmp_path / "parts" / "a.npz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a\.npz.*explain anew"):
        kept.get("a", "other", compute)


def test_keys_tell_shapes_and_borders_apart() -> None:
    keys = {
        hash_parts("ab", "c"), hash_parts("a", "bc"), hash_parts(np.zeros(4)),
        hash_parts(np.zeros((2, 2))), hash_parts(np.zeros(4, np.float32)),
    }  # fmt: skip
    assert len(keys) == 5
