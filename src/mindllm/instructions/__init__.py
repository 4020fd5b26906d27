"""Instruction sources of brain instruction tuning, read from their official files."""

from mindllm.instructions.attach import Summary, attach_source, collect, summary
from mindllm.instructions.registry import SOURCES, Source

__all__ = ["SOURCES", "Source", "Summary", "attach_source", "collect", "summary"]
