"""Conversations as prompts: places, loss mask, templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm.conversation import FMRI, ask
from mindllm.errors import InputError
from mindllm.llm import LanguageModel
from mindllm.prompt import IGNORE, Prompter, collate


@given(tokens=st.integers(1, 20), before=st.text("ab c.?", max_size=12), after=st.text("ab c.?", max_size=12))
@settings(max_examples=40, deadline=None)
def test_placeholders_equal_fmri_tokens(tokenizer, tokens: int, before: str, after: str) -> None:
    prompt = Prompter(tokenizer, tokens)(ask(f"{before}{FMRI}{after}", "yes"))
    assert len(prompt.places) == tokens
    assert (prompt.ids[prompt.places] == tokenizer.convert_tokens_to_ids(FMRI)).all()
    assert (np.diff(prompt.places) == 1).all()
    assert (prompt.labels[prompt.places] == IGNORE).all()


@pytest.fixture(scope="module")
def tokenizer(tiny_llm_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llm_folder)


def test_loss_is_on_assistant_turns_only(tiny_llm: LanguageModel) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        *ask("What animal is in <fMRI>?", "a dog"),
        {"role": "user", "content": "What does it do?"},
        {"role": "assistant", "content": "it runs"},
    ]
    prompt = Prompter(tiny_llm.tokenizer, 3)(turns)
    counted = tiny_llm.tokenizer.decode(prompt.labels[prompt.labels != IGNORE])
    assert counted == "a dog<|im_end|>it runs<|im_end|>"


@pytest.mark.parametrize("template", [None, "vicuna"])
def test_the_generation_prompt_is_where_the_answer_begins(tiny_llm: LanguageModel, template: str | None) -> None:
    prompter = Prompter(tiny_llm.tokenizer, 3, template)
    opened, whole = prompter(ask(), generate=True), prompter(ask(answer="a dog"))
    assert (whole.ids[: len(opened.ids)] == opened.ids).all()
    assert (opened.labels == IGNORE).all()
    assert whole.labels[len(opened.ids)] != IGNORE


def test_vicuna_reads_as_published(tiny_llm: LanguageModel) -> None:
    text = Prompter(tiny_llm.tokenizer, 1, "vicuna").render(ask("Hi?", "Yes."))
    assert "USER: Hi?\n<fMRI> ASSISTANT: Yes.<|im_end|>" in text


def test_padding(tiny_llm: LanguageModel) -> None:
    prompter = Prompter(tiny_llm.tokenizer, 3)
    prompts = [prompter(ask(answer="a dog runs and runs")), prompter(ask(answer="a cat"))]
    for left in (False, True):
        batch = collate(prompts, 1, left=left)
        for row, prompt in enumerate(prompts):
            real = batch["attention"][row] == 1
            assert (batch["ids"][row][real] == prompt.ids).all()
            assert (batch["labels"][row][real] == prompt.labels).all()
            assert (batch["labels"][row][~real] == IGNORE).all()
            assert (batch["ids"][row][batch["places"][row]] == prompter.fmri_id).all()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "alternates user and assistant"),
        ([{"role": "assistant", "content": FMRI}], "alternates user and assistant"),
        ([{"role": "user", "content": "Where is the scan?"}], "exactly once, in a user turn; found it 0 times"),
        ([{"role": "user", "content": FMRI * 2}], "found it 2 times"),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": FMRI}], "in \\['assistant'\\]"),
    ],
)
def test_bad_conversations(tiny_llm: LanguageModel, turns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prompter(tiny_llm.tokenizer, 3)(turns)


def test_too_long_and_unknown_template(tiny_llm: LanguageModel) -> None:
    with pytest.raises(InputError, match="reads at most 16"):
        Prompter(tiny_llm.tokenizer, 3, max_length=16)(ask(answer="a dog"))
    with pytest.raises(InputError, match="unknown chat template 'alpaca'; known: \\['vicuna'\\]"):
        Prompter(tiny_llm.tokenizer, 3, "alpaca")
    tiny_llm.tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template; name one"):
        Prompter(tiny_llm.tokenizer, 3)
