"""An export as WebDataset shards: the store's betas to the bit, in any reader of tar files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mindllm.data import webdataset_export
from mindllm.data.store import Store
from mindllm.data.webdataset_export import export_webdataset, iter_webdataset, read_export
from mindllm.fmri.masker_io import load_masker
from mindllm.utils.errors import InputError


def test_trials_are_read_back_to_the_bit(tmp_path: Path, tiny_store: Store) -> None:
    index = export_webdataset(tiny_store, tmp_path / "shards", shard_size=10)
    assert [s.n_trials for s in index.shards] == [10, 10, 4] * 3
    assert read_export(tmp_path / "shards") == index
    trials = list(iter_webdataset(tmp_path / "shards"))
    assert [(t.subject, t.trial_index) for t in trials] == [
        (subject, row) for subject in tiny_store.subjects for row in range(24)
    ]
    for subject in tiny_store.subjects:
        expected = tiny_store.betas(subject)
        betas = np.stack([trial.betas for trial in trials if trial.subject == subject])
        assert betas.dtype == expected.dtype
        np.testing.assert_array_equal(betas, expected)
        masker = load_masker(tmp_path / "shards" / "subjects" / subject, tiny_store.parcel_names)
        np.testing.assert_array_equal(masker.coords_mm, tiny_store.masker(subject).coords_mm)
        table = tiny_store.trials(subject)
        for trial in trials:
            if trial.subject == subject:
                row = table.iloc[trial.trial_index]
                assert trial.trial["stimulus"] == row["stimulus"]
                assert trial.trial["session"] == row["session"]
    texts = tiny_store.conversations.set_index("stimulus")["turns"]
    for trial in trials:
        (conversation,) = trial.conversations
        expected_turns = [dict(turn) for turn in texts[trial.trial["stimulus"]]]
        assert conversation["turns"] == expected_turns


def test_the_webdataset_package_reads_the_shards(tmp_path: Path, tiny_store: Store) -> None:
    wds = pytest.importorskip("webdataset")
    export_webdataset(tiny_store, tmp_path / "shards", shard_size=9, standardize=True)
    files = sorted(str(file) for file in (tmp_path / "shards").glob("*.tar"))
    samples = list(wds.WebDataset(files, shardshuffle=False).decode())
    assert len(samples) == 72
    for sample in samples:
        subject, row = sample["json"]["subject"], sample["json"]["trial_index"]
        expected = tiny_store.betas(subject, [row], standardize=True)[0]
        np.testing.assert_array_equal(sample["betas.npy"], expected)


def test_an_interrupted_export_goes_on(
    tmp_path: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "shards", []
    write_shard = webdataset_export.write_shard

    def stop_after_two(path: Path, *arguments: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write_shard(path, *arguments)
        written.append(path.name)

    monkeypatch.setattr(webdataset_export, "write_shard", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        export_webdataset(tiny_store, out, shard_size=12)
    assert not out.exists()
    with pytest.raises(InputError, match=r"interrupted export of .* with other options or data"):
        export_webdataset(tiny_store, out, shard_size=13)
    again: list[str] = []

    def record(path: Path, *arguments: object) -> None:
        again.append(path.name)
        write_shard(path, *arguments)

    monkeypatch.setattr(webdataset_export, "write_shard", record)
    index = export_webdataset(tiny_store, out, shard_size=12)
    assert sorted([*written, *again]) == [shard.file for shard in index.shards]
    assert len(list(iter_webdataset(out))) == 72
    export_webdataset(tiny_store, tmp_path / "other", shard_size=12)
    for shard in index.shards:  # the same store gives the same bytes
        assert (out / shard.file).read_bytes() == (tmp_path / "other" / shard.file).read_bytes()


def test_exports_that_are_refused(tmp_path: Path, tiny_store: Store) -> None:
    out = tmp_path / "shards"
    export_webdataset(tiny_store, out, subjects=["sub-02"], shard_size=24)
    with pytest.raises(InputError, match="already exists"):
        export_webdataset(tiny_store, out)
    assert {trial.subject for trial in iter_webdataset(out)} == {"sub-02"}
    shard = out / "sub-02-000000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="is not the file that was written"):
        list(iter_webdataset(out))
    with pytest.raises(InputError, match="is not an export"):
        read_export(tmp_path)


def test_conversations_about_one_trial_are_with_it_alone() -> None:
    def turns(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    table = pd.DataFrame(
        {
            "stimulus": ["cat", None, "dog", None],
            "subject": [None, "sub-01", None, "sub-02"],
            "trial_index": pd.array([None, 3, None, 3], dtype="Int64"),
            "source": list("abcd"),
            "turns": [turns(name) for name in "abcd"],
            "answers": [["x"], None, None, None],
        }
    )
    conversations = webdataset_export.ConversationTable(table)
    both = conversations.find("sub-01", 3, "cat")
    assert both == [
        {"source": "a", "turns": turns("a"), "answers": ["x"]},
        {"source": "b", "turns": turns("b"), "answers": []},
    ]
    assert [c["source"] for c in conversations.find("sub-01", 4, "dog")] == ["c"]
    assert conversations.find("sub-03", 3, "bird") == []
