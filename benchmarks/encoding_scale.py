"""Fit of the encoding model at the size of NSD, and evidence for many texts: seconds and memory.

Query outputs are simulated (the encoder's part is measured by speed.py): by default four subjects
with 9,000 stimuli of their own, three trials each, 1,024 queries, and embeddings of 384.

    python benchmarks/encoding_scale.py
"""

import argparse
import json
import resource
import time

import torch

from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model

N_QUERIES, EMBEDDING_DIM, N_EVIDENCE = 1024, 384, 1000


def simulate(
    n_subjects: int, n_stimuli: int, n_shared: int
) -> tuple[dict[str, SubjectFeatures], torch.Tensor]:
    """Features of subjects with `n_shared` stimuli in common, and the texts' embeddings."""
    rng = torch.Generator().manual_seed(0)
    n_texts = n_shared + n_subjects * (n_stimuli - n_shared)
    embeddings = torch.randn(n_texts, EMBEDDING_DIM, generator=rng)
    weights = torch.randn(EMBEDDING_DIM, N_QUERIES, generator=rng) / EMBEDDING_DIM**0.5
    subjects = {}
    for i in range(n_subjects):
        first = n_shared + i * (n_stimuli - n_shared)
        alone = torch.arange(first, first + n_stimuli - n_shared)
        stimuli = torch.cat([torch.arange(n_shared), alone]).repeat(3)
        noise = 3 * torch.randn(len(stimuli), N_QUERIES, generator=rng)
        subjects[f"sub-{i:02d}"] = SubjectFeatures(embeddings[stimuli] @ weights + noise, stimuli)
    return subjects, embeddings


def main() -> None:
    """Measure and print, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--stimuli", type=int, default=9000)
    parser.add_argument("--shared", type=int, default=1000)
    parser.add_argument("--table", action="store_true", help="a Markdown table, not JSON")
    options = parser.parse_args()
    subjects, embeddings = simulate(options.subjects, options.stimuli, options.shared)
    started = time.monotonic()
    model = fit_encoding_model(subjects, embeddings)
    fitted = time.monotonic()
    values = subjects["sub-00"].values
    transform = model.subject_transform(values)
    aligned = time.monotonic()
    model.evidence(values[:N_EVIDENCE], transform, embeddings[-N_EVIDENCE:])
    done = time.monotonic()
    measured: dict[str, object] = {
        "subjects": options.subjects,
        "stimuli per subject": options.stimuli,
        "texts": len(embeddings),
        "fit, seconds": round(fitted - started, 1),
        "alignment of a subject, seconds": round(aligned - fitted, 1),
        f"evidence {N_EVIDENCE} x {N_EVIDENCE}, seconds": round(done - aligned, 2),
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    if not options.table:
        print(json.dumps(measured))
        return
    print("| what | reference | ours | ratio | target |\n|---|---|---|---|---|")
    for name, value in measured.items():
        print(f"| {name} | | {value} | | |")


if __name__ == "__main__":
    main()
