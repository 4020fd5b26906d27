"""Conversations about a scan: turns of text."""

from mindllm.utils.errors import InputError

FMRI_TOKEN = "<fMRI>"
QUESTION = "What is this person seeing? Say it in these words:"
Conversation = list[dict[str, str]]


def build_conversation(
    question: str = QUESTION, answer: str | None = None, *, fmri_first: bool = False
) -> Conversation:
    """A conversation of one question about a scan; `<fMRI>` is put after the question (or first) where it is not in it.

    What stands before the scan is the same for every scan, so the language model reads it once.
    """
    if FMRI_TOKEN not in question:
        question = f"{FMRI_TOKEN}\n{question}" if fmri_first else f"{question}\n{FMRI_TOKEN}"
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
    places = [turn["role"] for turn in turns for _ in range(turn["content"].count(FMRI_TOKEN))]
    if places != ["user"]:
        raise InputError(
            f"{FMRI_TOKEN} must stand exactly once, in a user turn; found it {len(places)} times{f' (in {places})' if places else ''}: {turns!r}"
        )
