"""Visual grounding: boxes in generated text against those of COCO's categories in the image.

The first box of each category counts, a missing or unreadable one as empty; a box is right if its
intersection over union is above 0.5.

References
----------
BrainHub: Xia et al. 2024 (github.com/weihaox/BrainHub, eval_bbox_rec.py).
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mindllm.utils.errors import InputError, shorten

CREATURES = frozenset(
    {"person", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear"}
    | {"zebra", "giraffe"}
)
OBJECTS = frozenset(
    {"bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "bench"}
    | {"chair", "couch", "bed", "toilet", "sink", "refrigerator", "clock", "dining table"}
)
GROUPS = {
    "all": lambda name: True,
    "salient": lambda name: name in CREATURES | OBJECTS,
    "salient creatures": lambda name: name in CREATURES,
    "salient objects": lambda name: name in OBJECTS,
    "inconspicuous": lambda name: name not in CREATURES | OBJECTS,
}
NUMBER = r"\s*(-?\d*\.?\d+)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
Boxes = Mapping[str, Mapping[str, object]]


def first_box(value: object) -> tuple[float, ...] | None:
    """Read the first box of a text, or of nested lists.

    Parameters
    ----------
    value : str or sequence
        Such as `a dog [0.1,0.2,0.5,0.9]`, or [[0.1, 0.2, 0.5, 0.9]].

    Returns
    -------
    tuple of float or None
        x1, y1, x2, y2; None where there is no box.
    """
    if isinstance(value, str):
        match = BOX.search(value)
        return tuple(map(float, match.groups())) if match else None
    if not isinstance(value, Sequence) or not value:
        return None
    if all(isinstance(part, (int, float)) for part in value):
        return tuple(map(float, value)) if len(value) == 4 else None
    return first_box(value[0])


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute intersection over union of two boxes.

    Parameters
    ----------
    one, other : sequence of float, length 4
        x1, y1, x2, y2.

    Returns
    -------
    float
        In [0, 1]; 0 where both are empty.
    """
    (a, b, c, d), (e, f, g, h) = one, other
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    return shared / union if union > 0 else 0.0


def grounding(predictions: Boxes, references: Boxes) -> tuple[dict[str, float], np.ndarray]:
    """Score boxes per group of categories.

    Parameters
    ----------
    predictions, references : mapping of stimulus to mapping of category to boxes
        Or to a text with boxes.

    Returns
    -------
    scores : dict of str to float
        Accuracy at IoU 0.5 and mean IoU in percent, per group of categories.
    values : ndarray
        IoU of every box of the references, in [0, 1].

    Raises
    ------
    InputError
        If what is given for a stimulus is no mapping.
    """
    for boxes_of in (predictions, references):
        for key, categories in boxes_of.items():
            if not isinstance(categories, Mapping):
                raise InputError(
                    f"the boxes of {key!r} are {shorten(repr(categories), 80)}; expected an "
                    "object of category -> boxes."
                )
    names, values = [], []
    for key, categories in references.items():
        for name, boxes in categories.items():
            target = first_box(boxes)
            if target is None:
                continue
            names.append(name)
            box = first_box(predictions.get(key, {}).get(name)) or (0, 0, 0, 0)
            values.append(iou(box, target))
    per_box, scores = np.array(values), {}
    for group, belongs in GROUPS.items():
        members = per_box[[belongs(name) for name in names]] if names else per_box
        if len(members):
            scores[f"accuracy@0.5 ({group})"] = 100 * float((members > 0.5).mean())
            scores[f"IoU ({group})"] = 100 * float(members.mean())
    return scores, per_box
