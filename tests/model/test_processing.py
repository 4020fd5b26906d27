"""Conversations as prompts: places, loss mask, templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mindllm.language.chat_templates import Vicuna
from mindllm.language.conversation import FMRI, ask
from mindllm.model.language_model import LanguageModel
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE, Prompter, collate
from mindllm.utils.errors import InputError


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


def test_the_generation_prompt_is_where_the_answer_begins(tiny_llm: LanguageModel) -> None:
    prompter = Prompter(tiny_llm.tokenizer, 3)
    opened, whole = prompter(ask(), generate=True), prompter(ask(answer="a dog"))
    assert (whole.ids[: len(opened.ids)] == opened.ids).all()
    assert (opened.labels == IGNORE).all()
    assert whole.labels[len(opened.ids)] != IGNORE


@pytest.fixture
def llama() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as Llama's does, so that pieces are not what their sum is."""
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", -9.0), ("\u2581", -2.0), *((c, -3.0) for c in map(chr, range(32, 127)))], 0)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_vicuna_is_spelled_piece_by_piece(llama: PreTrainedTokenizerFast) -> None:
    """A role as after an end of sequence, the opened answer as a text of its own; its end and line break are learned."""
    prompter = Prompter(llama, 2, "vicuna")
    assert llama.pad_token == "<pad>"
    assert llama.convert_tokens_to_ids(FMRI) == llama.pad_token_id + 1
    turns = [{"role": "user", "content": f"{FMRI}\nHi?"}, {"role": "assistant", "content": "Yes."}]
    whole, opened = prompter(turns), prompter(turns[:-1], generate=True)

    def pieces(*texts: str) -> list[int]:
        return [i for text in texts for i in llama(text, add_special_tokens=False)["input_ids"]]

    system = f"<s>{Vicuna.system}\n\n"
    asked = [*pieces(system), *pieces("</s>USER: ")[1:], *pieces(f"{FMRI}\nHi?\n")]
    said = pieces("Yes.</s>\n")
    one = [i for n, i in enumerate(whole.ids) if n != whole.places[1]]
    assert one == [*asked, *pieces("</s>ASSISTANT: ")[1:], *said]
    assert whole.labels[whole.labels != IGNORE].tolist() == said
    assert [i for n, i in enumerate(opened.ids) if n != opened.places[1]] == [*asked, *pieces("ASSISTANT: ")]


def test_vicuna_is_cut_as_published(llama: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    prompter = Prompter(llama, 3, "vicuna")
    turns = ask(f"{FMRI} {'x' * 2000}", "yes")
    assert len(prompter(turns).ids) == 800 + 2
    assert len(prompter(turns[:-1], generate=True).ids) == 800 + 2 + len(llama.tokenize("ASSISTANT: "))
    assert "is cut at 800" in caplog.text
    with pytest.raises(InputError, match="cut before its <fMRI>"):
        prompter(ask(f"{'x' * 2000}{FMRI}", "yes"))


def test_a_question_is_put_as_the_format_puts_it(tiny_model: MindLLM) -> None:
    assert tiny_model.ask("Why?") == [{"role": "user", "content": f"Why?\n{FMRI}"}]
    tiny_model.card = {"question": f"Who, {FMRI}?"}  # as trained
    assert tiny_model.ask(answer="I")[0]["content"] == f"Who, {FMRI}?"
    tiny_model.prompter = Prompter(tiny_model.llm.tokenizer, 3, "vicuna")
    assert tiny_model.ask("Why?")[0]["content"] == f"{FMRI}\nWhy?"
    tiny_model.card = {}
    assert tiny_model.ask()[0]["content"] == f"{FMRI}\n{Vicuna.question}"


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
