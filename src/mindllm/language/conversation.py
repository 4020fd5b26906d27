"""Conversations about a scan: turns of text."""

from mindllm.utils.errors import InputError

FMRI_TOKEN = "<fMRI>"
QUESTION = "What is this person seeing? Say it in these words:"
Conversation = list[dict[str, str]]


def build_conversation(
    question: str = QUESTION, answer: str | None = None, *, fmri_first: bool = False
) -> Conversation:
    """Build a conversation of one question about a scan.

    Parameters
    ----------
    question : str
        If it has no placeholder `<fMRI>`, one is put after it. The text before the placeholder is
        the same for every scan, so the language model reads it once.
    answer : str, optional
        By default the conversation ends on the question.
    fmri_first : bool
        Put a missing placeholder before the question instead.

    Returns
    -------
    Conversation
        One dict with ``role`` and ``content`` per turn, as transformers' chat templates take it.

    Examples
    --------
    >>> question, answer = build_conversation("What animal?", "a dog")
    >>> question
    {'role': 'user', 'content': 'What animal?\\n<fMRI>'}
    >>> answer
    {'role': 'assistant', 'content': 'a dog'}
    """
    if FMRI_TOKEN not in question:
        question = f"{FMRI_TOKEN}\n{question}" if fmri_first else f"{question}\n{FMRI_TOKEN}"
    turns = [{"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def check_conversation(turns: Conversation) -> None:
    """Check the order of roles and the number of placeholders.

    Parameters
    ----------
    turns : Conversation
        User and assistant turns alternate, after at most one system turn.

    Raises
    ------
    InputError
        If roles do not alternate, or `<fMRI>` does not stand exactly once, in a user turn.

    Examples
    --------
    >>> check_conversation(build_conversation("What animal?"))
    """
    roles = [turn.get("role") for turn in turns]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(dialogue)):
        raise InputError(
            "a conversation alternates user and assistant turns, after at most one system turn; "
            f"found the roles {roles}."
        )
    fmri_roles = [turn["role"] for turn in turns for _ in range(turn["content"].count(FMRI_TOKEN))]
    if fmri_roles != ["user"]:
        raise InputError(
            f"{FMRI_TOKEN} must stand exactly once, in a user turn; found it "
            f"{len(fmri_roles)} times{f' (in {fmri_roles})' if fmri_roles else ''}: {turns!r}"
        )
