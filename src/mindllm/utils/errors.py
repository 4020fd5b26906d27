"""The one error a user is meant to read."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, where, and what to do."""
