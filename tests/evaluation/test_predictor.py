"""Predictions of a model: what was scored before is not read again."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mindllm.data.store import Store
from mindllm.evaluation import predictor as predictor_module
from mindllm.evaluation.evaluation_set import build_evaluation_set
from mindllm.evaluation.predictor import Predictor
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import EncodedPrompt

OTHERS = ["a bus", "a dog runs fast", "a bus"]


def test_the_ratio_of_a_text_is_the_same_whether_it_was_a_candidate(
    tiny_model: MindLLM, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.null_tokens.normal_()
    question = tiny_model.build_conversation()[0]["content"]
    task = build_evaluation_set(
        tiny_store, tiny_model.model_card, ["sub-02"], "train", question, question
    )
    groups = [np.array([row]) for row in range(6)]
    predictor = Predictor(tiny_model, task, batch_size=2, generate_options={"max_new_tokens": 2})
    predictions = predictor.predict_trials(tiny_store, "sub-02", groups)
    texts = [task.candidates[0], OTHERS[0], task.candidates[1], *OTHERS[1:], task.candidates[0]]
    tokens = tiny_model.encode(
        tiny_store.betas("sub-02", range(6), standardize=True), tiny_store.masker("sub-02")
    )
    conversations = [tiny_model.build_conversation(question, text) for text in texts]
    expected = tiny_model.log_likelihood_ratio(tokens, conversations)
    n_read = []

    def count(
        model: MindLLM, tokens: torch.Tensor, prompts: Sequence[EncodedPrompt]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_read.append(len(prompts))
        return prompt_log_likelihood(model, tokens, prompts)

    monkeypatch.setattr(predictor_module, "prompt_log_likelihood", count)
    ratios = predictor.log_likelihood_ratio(
        tiny_store, "sub-02", groups, replace(predictions, texts=texts)
    )
    np.testing.assert_allclose(ratios, expected, atol=2e-4)
    assert sum(n_read) == 2 + 3, "two distinct texts with the null tokens, three trials"
    known = replace(predictions, texts=[task.candidates[0]] * 6)
    predictor.log_likelihood_ratio(tiny_store, "sub-02", groups, known)
    assert sum(n_read) == 5, "a candidate is not read again"
