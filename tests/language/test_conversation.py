"""Conversations: how they are built, and what is refused."""

import pytest

from mindllm.language.chat_templates import get_chat_template
from mindllm.language.conversation import build_conversation, check_conversation
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.utils.errors import InputError

USER, ASSISTANT = {"role": "user", "content": "<fMRI>"}, {"role": "assistant", "content": "a dog"}


def test_a_placeholder_is_put_where_there_is_none() -> None:
    assert build_conversation("Why?")[0]["content"] == "Why?\n<fMRI>"
    assert build_conversation("Why?", fmri_first=True)[0]["content"] == "<fMRI>\nWhy?"
    assert build_conversation("Is <fMRI> a dog?", fmri_first=True)[0]["content"] == (
        "Is <fMRI> a dog?"
    )


@pytest.mark.parametrize(
    "turns", [[USER], [USER, ASSISTANT], [{"role": "system", "content": "Be brief."}, USER]]
)
def test_alternating_turns_pass(turns: list[dict[str, str]]) -> None:
    check_conversation(turns)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], r"found the roles \[\]"),
        ([ASSISTANT], r"alternates user and assistant turns.*\['assistant'\]"),
        ([USER, USER], r"\['user', 'user'\]"),
        ([{"role": "user", "content": "Why?"}], "found it 0 times:"),
        ([{"role": "user", "content": "<fMRI> or <fMRI>"}], r"found it 2 times \(in \['user'"),
        (
            [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<fMRI>"}],
            r"found it 1 times \(in \['assistant'\]\)",
        ),
    ],
)
def test_other_conversations_are_refused(turns: list[dict[str, str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_conversation(turns)


def test_chat_templates_that_do_not_fit(tiny_llm: FrozenLanguageModel) -> None:
    with pytest.raises(InputError, match=r"unknown chat template 'llama'; known: \['vicuna'\]"):
        get_chat_template(tiny_llm.tokenizer, "llama")
    tiny_llm.tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template; name one"):
        get_chat_template(tiny_llm.tokenizer, None)
    tiny_llm.tokenizer.eos_token = None
    with pytest.raises(InputError, match="needs a tokenizer with an end-of-sequence token"):
        get_chat_template(tiny_llm.tokenizer, "vicuna")
