"""Chat templates as models have them: what is learned, what ends a turn, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mindllm.language.chat_templates import TokenizerChatTemplate, strip_thinking
from mindllm.language.conversation import FMRI_TOKEN, build_conversation
from mindllm.utils.errors import InputError

TURN = "{% for m in messages %}"
THINK = "<think>\n\n</think>\n\n"
# name: (template, control tokens, what closes a last and an earlier turn, what opens an answer)
TEMPLATES: dict[str, tuple[str, list[str], tuple[str, str], str]] = {
    "chatml": (
        TURN + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        ("<|im_end|>", "<|im_end|>"),
        "<|im_start|>assistant\n",
    ),
    "llama 3": (
        "<|begin_of_text|>" + TURN + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        ("<|eot_id|>", "<|eot_id|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama 2": (
        TURN + "{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}",
        ["<s>", "</s>"],
        (" </s>", " </s>"),
        "[/INST]",
    ),
    "thinks, can be switched off": (
        TURN + "{% if loop.last and m.role == 'assistant' %}<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and "
        "not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        ("<|im_end|>", "<|im_end|>"),
        f"<|im_start|>assistant\n{THINK}",
    ),
    "always opens a thought": (
        TURN + "{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] }}<|end_of_sentence|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        ["<|User|>", "<|Assistant|>", "<|end_of_sentence|>"],
        ("<|end_of_sentence|>", "<|end_of_sentence|>"),
        "<|Assistant|>",
    ),
    "channels": (
        TURN + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>"
        "{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|start|>", "<|end|>", "<|return|>", "<|message|>", "<|channel|>"],
        ("<|return|>", "<|end|>"),
        "<|start|>assistant<|channel|>final<|message|>",
    ),
    "no closing mark": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<|user|>", "<|assistant|>"],
        ("", "<|user|>"),
        "<|assistant|>\n",
    ),
    "plain text": (
        TURN + "### {{ m.role }}:\n{{ m.content }}\n###\n\n{% endfor %}",
        [],
        ("\n###", ""),
        "### assistant:\n",
    ),
}


@pytest.fixture
def tokenizer(tiny_llm_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llm_folder)


def make_template(tokenizer: Any, name: str) -> TokenizerChatTemplate:
    tokenizer.chat_template, controls, _, _ = TEMPLATES[name]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": controls}, replace_extra_special_tokens=False
    )
    return TokenizerChatTemplate(tokenizer)


def split(template: TokenizerChatTemplate, turns: list, generate: bool = False) -> list[str]:
    """Text of each run of tokens that are an assistant's, or not."""
    ids, is_answer = template.encode(turns, generate)
    runs: list[list[int]] = []
    for n, (token, counted) in enumerate(zip(ids, is_answer, strict=True)):
        if n == 0 or counted != is_answer[n - 1]:
            runs.append([])
        runs[-1].append(int(token))
    return [template.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_what_the_template_frames(tokenizer: Any, name: str) -> None:
    template = make_template(tokenizer, name)
    _, _, (closing, earlier), opening = TEMPLATES[name]
    before, answer, *rest = split(template, build_conversation("What?", "a dog"))
    assert answer.strip(" ") == f"a dog{closing}".strip(" ")
    assert before.endswith(opening)
    assert "".join(rest).strip() == ""
    (prompt,) = split(template, build_conversation("What?"), generate=True)
    assert prompt == before, "what is learned to be answered is what is asked"
    longer = [
        *build_conversation("What?", "a dog"),
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "a street"},
    ]
    runs = split(template, longer)
    assert [run.strip(" ") for run in runs[1::2]] == [
        f"a dog{earlier}".strip(" "),
        f"a street{closing}".strip(" "),
    ]
    assert "think" not in "".join(runs[1::2])


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_end_at_what_closes_them(tokenizer: Any, name: str) -> None:
    template = make_template(tokenizer, name)
    marks = {mark.strip() for mark in TEMPLATES[name][2]} - {""}
    tokens = {mark for mark in marks if mark in template.data_tokenizer.controls}
    assert template.end_token_ids == sorted(map(tokenizer.convert_tokens_to_ids, tokens))
    assert template.stop_strings == sorted(marks - tokens)


@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_in_data_are_letters(tokenizer: Any, name: str) -> None:
    template = make_template(tokenizer, name)
    controls = [*template.data_tokenizer.controls]
    texts = [f"a sign {control}, and {control}{control}" for control in controls]
    for text in texts:
        turns = build_conversation(f"{text} {FMRI_TOKEN} {text}", text)
        plain = build_conversation(f"What? {FMRI_TOKEN} What?", "a dog")
        ids, plain_ids = template.encode(turns, False)[0], template.encode(plain, False)[0]
        assert tokenizer.decode(ids).count(text) == 3, "every letter is there"
        for token in template.data_tokenizer.controls.values():
            assert (ids == token).sum() == (plain_ids == token).sum()
        placeholder = tokenizer.convert_tokens_to_ids(FMRI_TOKEN)
        assert (ids == placeholder).sum() == 1


def test_a_template_that_changes_turns_is_refused(tokenizer: Any) -> None:
    for template in (
        TURN + "{{ m.content | upper }}<|im_end|>{% endfor %}",
        "{{ messages[-1].content }}<|im_end|>",
        TURN + "{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}",
    ):
        tokenizer.chat_template = template
        with pytest.raises(InputError, match=r"changes or leaves out turns.*Name another"):
            TokenizerChatTemplate(tokenizer)


def test_a_turn_that_the_template_refuses_is_told(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + TURN + "{{ m.content }}<|im_end|>{% endfor %}"
    )
    template = TokenizerChatTemplate(tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, *build_conversation("What?")]
    with pytest.raises(InputError, match=r"refuses a conversation \(System role not supported\)"):
        template.encode(turns, generate=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a dog", "a dog"),
        ("<think>\nAn animal?\n</think>\n\na dog", "\n\na dog"),
        ("An animal?</think>a dog", "a dog"),
        ("<think>An animal", ""),
        ("a dog <think>or", "a dog "),
        ("<think>a</think><think>b</think>a dog", "a dog"),
    ],
)
def test_thoughts_are_left_out(text: str, answer: str) -> None:
    assert strip_thinking(text) == answer
