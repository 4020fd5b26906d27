"""Captions and paragraphs: the source's prompt is all that is asked."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import pandas as pd

from mindllm.errors import InputError
from mindllm.instructions import forms
from mindllm.instructions.given import Given
from mindllm.instructions.items import Item, Wanted, genome


def coco_captions(given: Given, wanted: Wanted) -> Iterator[Item]:
    """One conversation per caption; the image's other captions count as right too."""
    said: dict[int, dict[str, str]] = defaultdict(dict)
    for _, _, record in given.records(forms.CAPTIONS):
        if record.image_id in wanted:
            said[record.image_id].setdefault(record.caption, str(record.id))
    yield from with_others(said)


def one_caption(given: Given, wanted: Wanted) -> Iterator[Item]:
    """One conversation per image, which says the first of its captions; the others count as right too."""
    seen: set[int | str] = set()
    for item in coco_captions(given, wanted):
        if item.image not in seen:
            seen.add(item.image)
            yield item


def paragraphs(given: Given, wanted: Wanted) -> Iterator[Item]:
    """One conversation per paragraph."""
    coco, said = genome(given, wanted), defaultdict[int, dict[str, str]](dict)
    for _, _, record in given.records(forms.PARAGRAPHS):
        if record.image_id in coco:
            said[coco[record.image_id]].setdefault(record.paragraph, str(record.image_id))
    yield from with_others(said)


def own_captions(given: Given, wanted: Wanted) -> Iterator[Item]:
    """One conversation per caption of a stimulus."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for path in given.files[forms.TABLE]:
        with path.open(encoding="utf-8-sig") as file:
            separator = "\t" if "\t" in file.readline() else ","
        try:
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except pd.errors.ParserError as error:
            raise InputError(
                f"{path} cannot be read as a table ({error}). Quote captions that hold the separator."
            ) from error
        for number, (stimulus, caption) in enumerate(zip(table["stimulus"], table["caption"], strict=True), 1):
            if stimulus in wanted:
                said[stimulus].setdefault(caption.strip(), f"{path.stem}-{number}")
    yield from with_others(said)


def with_others(said: Mapping[int, Mapping[str, str]] | Mapping[str, Mapping[str, str]]) -> Iterator[Item]:
    """A conversation for each text (text -> key) about an image."""
    for image, texts in said.items():
        for text, key in texts.items():
            yield Item(image, key, [("", text)], [text, *(other for other in texts if other != text)])
