"""TrialDataset in an ordinary DataLoader: trials as read directly, ready for a training loop."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mindllm import InputError, MindLLM, Store, TrialDataset
from mindllm.data.collate import TrialSample


@pytest.fixture
def dataset(tiny_store: Store, tiny_model: MindLLM) -> TrialDataset:
    return TrialDataset(tiny_store, processor=tiny_model.processor)


def test_a_sample_is_a_trial_of_the_store(dataset: TrialDataset, tiny_store: Store) -> None:
    assert len(dataset) == sum(
        (tiny_store.trials(s)["split"] == "train").sum() for s in tiny_store.subjects
    )
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        sample = dataset[index]
        expected = tiny_store.betas(sample.subject, [sample.trial_index], standardize=True)[0]
        np.testing.assert_array_equal(sample.betas, expected)
        trials = tiny_store.trials(sample.subject)
        assert trials["stimulus"][sample.trial_index] == sample.stimulus
        texts = tiny_store.conversations.set_index("stimulus")["answers"][sample.stimulus]
        assert sample.conversation[-1]["content"] in list(np.concatenate([list(texts)]).ravel())


def test_a_loader_gives_what_the_model_takes(dataset: TrialDataset, tiny_model: MindLLM) -> None:
    loader = DataLoader(dataset, batch_size=7, shuffle=True, collate_fn=dataset.collate_fn)
    losses, count = [], 0
    for batch in loader:
        out = tiny_model(**batch)
        losses.append(out.loss)
        count += len(batch["fmri"])
        assert len(batch["input_ids"]) == len(batch["fmri"]) == len(out.logits)
    assert count == len(dataset)
    losses[0].backward()
    assert tiny_model.encoder.queries.grad.abs().sum() > 0


def test_samples_of_several_subjects_keep_their_order(
    dataset: TrialDataset, tiny_model: MindLLM
) -> None:
    samples = [dataset[i] for i in (0, len(dataset) - 1, 1, len(dataset) // 2)]
    assert len({s.subject for s in samples}) > 1
    tokens = tiny_model.encode_inputs(dataset.collate_fn(samples)["fmri"])
    for sample, token in zip(samples, tokens, strict=True):
        alone = tiny_model.encode(sample.betas, dataset.store.masker(sample.subject))[0]
        torch.testing.assert_close(token, alone)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_trials(dataset: TrialDataset, context: str) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(
            dataset,
            batch_size=32,
            num_workers=workers,
            collate_fn=dataset.collate_fn,
            multiprocessing_context=context if workers else None,
        )
        return [torch.cat([b.flatten() for b in batch["fmri"].betas]) for batch in loader]

    for alone, together in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, together)


def test_pickling_does_not_copy_betas(dataset: TrialDataset, tiny_store: Store) -> None:
    assert dataset[0].stimulus  # conversations and betas have been opened
    dataset.processor = None
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[3].betas, dataset[3].betas)
    assert isinstance(again.store.betas(again.subjects[0]), np.memmap)
    assert len(pickle.dumps(tiny_store)) < 500


def test_conversations_are_drawn_if_asked(tiny_store: Store) -> None:
    torch.manual_seed(0)
    drawn: TrialSample = TrialDataset(tiny_store, draw_conversations=True)[0]
    assert drawn.conversation[-1]["role"] == "assistant"


def test_without_a_processor(tiny_store: Store) -> None:
    dataset = TrialDataset(tiny_store)
    with pytest.raises(InputError, match="has no processor"):
        dataset.collate_fn([dataset[0]])
