"""Conversations as prompts: places, loss mask, templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mindllm.language.chat_templates import VicunaChatTemplate
from mindllm.language.conversation import FMRI_TOKEN, build_conversation
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX, MindLLMProcessor
from mindllm.utils.errors import InputError


@given(
    tokens=st.integers(1, 20),
    before=st.text("ab c.?", max_size=12),
    after=st.text("ab c.?", max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_placeholders_equal_fmri_tokens(tokenizer, tokens: int, before: str, after: str) -> None:
    prompt = MindLLMProcessor(tokenizer, tokens)(
        build_conversation(f"{before}{FMRI_TOKEN}{after}", "yes")
    )
    assert len(prompt.fmri_token_positions) == tokens
    assert (
        prompt.input_ids[prompt.fmri_token_positions] == tokenizer.convert_tokens_to_ids(FMRI_TOKEN)
    ).all()
    assert (np.diff(prompt.fmri_token_positions) == 1).all()
    assert (prompt.labels[prompt.fmri_token_positions] == IGNORE_INDEX).all()


@pytest.fixture(scope="module")
def tokenizer(tiny_llm_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llm_folder)


def test_loss_is_on_assistant_turns_only(tiny_llm: FrozenLanguageModel) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        *build_conversation("What animal is in <fMRI>?", "a dog"),
        {"role": "user", "content": "What does it do?"},
        {"role": "assistant", "content": "it runs"},
    ]
    prompt = MindLLMProcessor(tiny_llm.tokenizer, 3)(turns)
    counted = tiny_llm.tokenizer.decode(prompt.labels[prompt.labels != IGNORE_INDEX])
    assert counted == "a dog<|im_end|>it runs<|im_end|>"


def test_the_generation_prompt_is_where_the_answer_begins(tiny_llm: FrozenLanguageModel) -> None:
    prompter = MindLLMProcessor(tiny_llm.tokenizer, 3)
    opened, whole = (
        prompter(build_conversation(), generate=True),
        prompter(build_conversation(answer="a dog")),
    )
    assert (whole.input_ids[: len(opened.input_ids)] == opened.input_ids).all()
    assert (opened.labels == IGNORE_INDEX).all()
    assert whole.labels[len(opened.input_ids)] != IGNORE_INDEX


@pytest.fixture
def llama() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as Llama's: pieces differ from their sum."""
    tokenizer = Tokenizer(
        models.Unigram(
            [("<unk>", -9.0), ("\u2581", -2.0), *((c, -3.0) for c in map(chr, range(32, 127)))], 0
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_vicuna_is_spelled_piece_by_piece(llama: PreTrainedTokenizerFast) -> None:
    """A role as after an end of sequence; of the answer, its end and line break are learned too."""
    prompter = MindLLMProcessor(llama, 2, "vicuna")
    assert llama.pad_token == "<pad>"
    assert llama.convert_tokens_to_ids(FMRI_TOKEN) == llama.pad_token_id + 1
    turns = [
        {"role": "user", "content": f"{FMRI_TOKEN}\nHi?"},
        {"role": "assistant", "content": "Yes."},
    ]
    whole, opened = prompter(turns), prompter(turns[:-1], generate=True)

    def pieces(*texts: str) -> list[int]:
        return [i for text in texts for i in llama(text, add_special_tokens=False)["input_ids"]]

    system = f"<s>{VicunaChatTemplate.system}\n\n"
    asked = [*pieces(system), *pieces("</s>USER: ")[1:], *pieces(f"{FMRI_TOKEN}\nHi?\n")]
    said = pieces("Yes.</s>\n")
    one = [i for n, i in enumerate(whole.input_ids) if n != whole.fmri_token_positions[1]]
    assert one == [*asked, *pieces("</s>ASSISTANT: ")[1:], *said]
    assert whole.labels[whole.labels != IGNORE_INDEX].tolist() == said
    assert [i for n, i in enumerate(opened.input_ids) if n != opened.fmri_token_positions[1]] == [
        *asked,
        *pieces("ASSISTANT: "),
    ]


def test_vicuna_is_cut_as_published(
    llama: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    prompter = MindLLMProcessor(llama, 3, "vicuna")
    turns = build_conversation(f"{FMRI_TOKEN} {'x' * 2000}", "yes")
    assert len(prompter(turns).input_ids) == 800 + 2
    assert len(prompter(turns[:-1], generate=True).input_ids) == 800 + 2 + len(
        llama.tokenize("ASSISTANT: ")
    )
    assert "is cut at 800" in caplog.text
    with pytest.raises(InputError, match="cut before its <fMRI>"):
        prompter(build_conversation(f"{'x' * 2000}{FMRI_TOKEN}", "yes"))


def test_a_question_is_put_as_the_format_puts_it(tiny_model: MindLLM) -> None:
    assert tiny_model.build_conversation("Why?") == [
        {"role": "user", "content": f"Why?\n{FMRI_TOKEN}"}
    ]
    tiny_model.model_card = ModelCard(question=f"Who, {FMRI_TOKEN}?")  # as trained
    assert tiny_model.build_conversation(answer="I")[0]["content"] == f"Who, {FMRI_TOKEN}?"
    tiny_model.processor = MindLLMProcessor(tiny_model.language_model.tokenizer, 3, "vicuna")
    assert tiny_model.build_conversation("Why?")[0]["content"] == f"{FMRI_TOKEN}\nWhy?"
    tiny_model.model_card = ModelCard()
    assert (
        tiny_model.build_conversation()[0]["content"]
        == f"{FMRI_TOKEN}\n{VicunaChatTemplate.question}"
    )


def test_padding(tiny_llm: FrozenLanguageModel) -> None:
    prompter = MindLLMProcessor(tiny_llm.tokenizer, 3)
    prompts = [
        prompter(build_conversation(answer="a dog runs and runs")),
        prompter(build_conversation(answer="a cat")),
    ]
    for pad_after in (None, 0, 4):
        batch = prompter.pad(prompts, pad_after)
        for row, prompt in enumerate(prompts):
            real = batch["attention_mask"][row] == 1
            assert (batch["input_ids"][row][real] == prompt.input_ids).all()
            assert (batch["labels"][row][real] == prompt.labels).all()
            assert (batch["labels"][row][~real] == IGNORE_INDEX).all()
            assert (
                batch["input_ids"][row][batch["fmri_token_positions"][row]]
                == prompter.fmri_token_id
            ).all()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "alternates user and assistant"),
        ([{"role": "assistant", "content": FMRI_TOKEN}], "alternates user and assistant"),
        (
            [{"role": "user", "content": "Where is the scan?"}],
            "exactly once, in a user turn; found it 0 times",
        ),
        ([{"role": "user", "content": FMRI_TOKEN * 2}], "found it 2 times"),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": FMRI_TOKEN}],
            "in \\['assistant'\\]",
        ),
    ],
)
def test_bad_conversations(tiny_llm: FrozenLanguageModel, turns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MindLLMProcessor(tiny_llm.tokenizer, 3)(turns)


def test_too_long_and_unknown_template(tiny_llm: FrozenLanguageModel) -> None:
    with pytest.raises(InputError, match="reads at most 16"):
        MindLLMProcessor(tiny_llm.tokenizer, 3, max_length=16)(build_conversation(answer="a dog"))
    with pytest.raises(InputError, match="unknown chat template 'alpaca'; known: \\['vicuna'\\]"):
        MindLLMProcessor(tiny_llm.tokenizer, 3, "alpaca")
    tiny_llm.tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template; name one"):
        MindLLMProcessor(tiny_llm.tokenizer, 3)
