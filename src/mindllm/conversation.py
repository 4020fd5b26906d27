"""Conversations about a scan: turns of text, and the formats of language models that bring none of their own."""

from mindllm.errors import InputError

FMRI = "<fMRI>"
QUESTION = "What is this person seeing? Say it in these words:"
Conversation = list[dict[str, str]]

# Vicuna v1.1's format, for tokenizers that carry no template of their own (a base Llama, for one).
TEMPLATES = {
    "vicuna": (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} {% elif m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}


def ask(question: str = QUESTION, answer: str | None = None) -> Conversation:
    """A conversation of one question about a scan; `<fMRI>` is put after the question where it is not in it.

    What stands before the scan is the same for every scan, so the language model reads it once.
    """
    question = question if FMRI in question else f"{question}\n{FMRI}"
    turns = [{"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def check_conversation(turns: Conversation) -> None:
    """Raise InputError unless roles alternate user, assistant (after an optional system turn) and `<fMRI>` stands once, in a user turn."""
    roles = [turn.get("role") for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise InputError(
            f"a conversation alternates user and assistant turns, after at most one system turn; found the roles {roles}."
        )
    places = [turn["role"] for turn in turns for _ in range(turn["content"].count(FMRI))]
    if places != ["user"]:
        raise InputError(
            f"{FMRI} must stand exactly once, in a user turn; found it {len(places)} times{f' (in {places})' if places else ''}: {turns!r}"
        )
