"""How well maps of words find the voxels that simulated subjects code an attribute with.

Subjects are simulated at a signal, each of some is left out of a model of the others, and the maps
of the words of each attribute are made of all its trials, smoothed by the receptive fields. The
area under the ROC curve (AUC) compares voxels that code the attribute with all others; it is 0.5
by chance. Beside the exact contributions stand activation patterns, and both as they are without
smoothing; of all words of an attribute averaged, and of single words.

    python -m benchmarks.planted_maps
    python -m benchmarks.planted_maps --seeds 1 --subjects 2 --signal 0     # nothing is planted

A subject takes some 20 s of one core.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.tiny_llm import save_tiny_llm
from mindllm.explain.patterns import FWHM_PER_SD, contrast_weights, correlate, smooth
from mindllm.explain.text_maps import weigh_word
from mindllm.simulate.scenes import ATTRIBUTES
from tests.explain.planted import CONFIG, VALUES, Planted, plan

FWHM_MM = FWHM_PER_SD * (CONFIG.receptive_field_sd_mm or 0)
N_SUBJECTS = 8


def main() -> None:
    """Print the table of one simulation after another, and of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--subjects", type=int, default=4, help="left out of each simulation")
    parser.add_argument("--signal", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_llm(Path(folder), ["a dog"], vocab_size=320, hidden_size=32, max_length=64)
        single, groups = defaultdict(list), defaultdict(list)
        for seed in map(int, options.seeds.split(",")):
            maps = defaultdict(list)
            for number in range(options.subjects):
                world = plan(Path(folder), options.signal, N_SUBJECTS, seed, number)
                for name, values in make_maps(world).items():
                    scores = score(values, world)
                    single[name].append(scores)
                    maps[name].append((values, world))
                    print(seed, world.subject.subject, name, show([scores]), flush=True)
            for name, of_subjects in maps.items():
                groups[name].append(score(*average(of_subjects)))
    for title, results in (("single subjects", single), ("mean of subjects", groups)):
        print(f"\n{title}\nmap\t{chr(9).join(ATTRIBUTES)}\twords\tlowest attribute")
        for name, rows in results.items():
            print(f"{name}\t{show(rows)}")


def make_maps(world: Planted) -> dict[str, np.ndarray]:
    """Maps (n_words, n_voxels) of one subject, by kind."""
    words = [
        weigh_word(world.features, world.question_about_value(value), name, world.naming(value), [])
        for value, (_, name) in enumerate(VALUES)
    ]
    betas = world.features.betas.numpy()
    weights = contrast_weights(np.stack([word.naming for word in words], 1))
    patterns = correlate(betas, np.stack([word.evidence for word in words], 1))
    coords = world.masker.coords_mm
    raw = {
        "contributions": np.stack([word.voxels - word.control for word in words]),
        "patterns": patterns * (weights.T @ betas),
    }
    smoothed = {name: smooth(coords, values, FWHM_MM) for name, values in raw.items()}
    return {f"{name}, not smoothed": values for name, values in raw.items()} | smoothed


def average(maps: list[tuple[np.ndarray, Planted]]) -> tuple[np.ndarray, "Grid"]:
    """Mean over the subjects with a voxel at each point of the common grid."""
    indices = np.concatenate([world.subject.voxel_indices for _, world in maps])
    points, columns = np.unique(indices, axis=0, return_inverse=True)
    _, first = np.unique(columns, return_index=True)
    values = np.concatenate([values for values, _ in maps], 1)
    sums = np.stack([np.bincount(columns, row, len(points)) for row in values])
    planted = {
        name: np.concatenate([world.planted_voxels(name) for _, world in maps])[first]
        for name in ATTRIBUTES
    }
    return sums / np.bincount(columns, minlength=len(points)), Grid(planted)


class Grid:
    """Where each attribute is planted."""

    def __init__(self, planted: dict[str, np.ndarray]) -> None:
        self.planted = planted

    def planted_voxels(self, attribute: str) -> np.ndarray:
        """Whether each point codes the attribute."""
        return self.planted[attribute]


def score(values: np.ndarray, world: "Planted | Grid") -> np.ndarray:
    """AUC of each attribute's words averaged, and the mean of single words."""
    is_planted = [world.planted_voxels(name) for name, _ in VALUES]
    of_words = [roc_auc_score(p, row) for p, row in zip(is_planted, values, strict=True)]
    of_attributes = [
        roc_auc_score(
            world.planted_voxels(attribute), values[[a == attribute for a, _ in VALUES]].mean(0)
        )
        for attribute in ATTRIBUTES
    ]
    return np.array([*of_attributes, np.mean(of_words)])


def show(rows: list[np.ndarray]) -> str:
    """Means over rows, and the lowest attribute of any."""
    numbers = [*np.mean(rows, 0), np.min(np.array(rows)[:, :-1])]
    return "\t".join(f"{number:.3f}" for number in numbers)


if __name__ == "__main__":
    main()
