"""Brain grounding: boxes said in text, against those of COCO's categories in the image, by how salient a category is.

Source: BrainHub, Xia et al. 2024 (github.com/weihaox/BrainHub, eval_bbox_rec.py): the first box of each category counts, a
missing or unreadable one as empty; a box is right if its intersection over union is above 0.5.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CREATURES = frozenset(
    [
        "person",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
    ]
)
OBJECTS = frozenset(
    [
        "bicycle",
        "car",
        "motorcycle",
        "airplane",
        "bus",
        "train",
        "truck",
        "boat",
        "bench",
        "chair",
        "couch",
        "bed",
        "toilet",
        "sink",
        "refrigerator",
        "clock",
    ]
) | {"dining table"}
GROUPS = {
    "all": lambda name: True,
    "salient": lambda name: name in CREATURES | OBJECTS,
    "salient creatures": lambda name: name in CREATURES,
    "salient objects": lambda name: name in OBJECTS,
    "inconspicuous": lambda name: name not in CREATURES | OBJECTS,
}
NUMBER = r"\s*(-?\d*\.?\d+)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


def first_box(text: Any) -> tuple[float, ...] | None:
    """The first box x1, y1, x2, y2 of a text such as `a dog [0.1,0.2,0.5,0.9]`, or of nested lists; None: there is none."""
    if isinstance(text, str):
        found = BOX.search(text)
        return tuple(map(float, found.groups())) if found else None
    if not isinstance(text, Sequence) or not text:
        return None
    if all(isinstance(part, (int, float)) for part in text):
        return tuple(map(float, text)) if len(text) == 4 else None
    return first_box(text[0])


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where both are empty."""
    (a, b, c, d), (e, f, g, h) = one, other
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    return shared / union if union > 0 else 0.0


def grounding(
    predictions: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy at IoU 0.5 and mean IoU in per cent, per group of categories, and the IoU of every box of `references`.

    Both: stimulus -> category -> boxes (or a text with boxes).
    """
    names, values = [], []
    for key, categories in references.items():
        for name, right in categories.items():
            target = first_box(right)
            if target is None:
                continue
            names.append(name)
            values.append(
                iou(first_box(predictions.get(key, {}).get(name)) or (0, 0, 0, 0), target)
            )
    each, out = np.array(values), {}
    for group, belongs in GROUPS.items():
        inside = each[[belongs(name) for name in names]] if names else each
        if len(inside):
            out[f"accuracy@0.5 ({group})"] = 100 * float((inside > 0.5).mean())
            out[f"IoU ({group})"] = 100 * float(inside.mean())
    return out, each
