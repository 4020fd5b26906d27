"""Generated text, handed on piece by piece while it is written."""

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer


class CallbackStreamer(TextStreamer):
    """Hands each finished piece of text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.receive(text)
