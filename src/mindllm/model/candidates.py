"""Token sequences as a tree, so that a language model reads a beginning that several share only once."""

from collections.abc import Sequence

import torch


class TokenTrie:
    """Token sequences as one tree of n nodes: `tokens`, `parents` (-1: the root), `depth` (n,), `ancestors` (n, n)."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        for sequence in sequences:
            for stop in range(1, len(sequence) + 1):
                nodes.setdefault(tuple(sequence[:stop]), len(nodes))
        self.tokens = torch.tensor([path[-1] for path in nodes])
        self.depth = torch.tensor([len(path) - 1 for path in nodes])
        self.parents = torch.tensor([nodes.get(path[:-1], -1) for path in nodes])
        self.ends = torch.tensor([nodes[tuple(sequence)] for sequence in sequences])
        self.ancestors = torch.eye(
            len(nodes), dtype=torch.bool
        )  # a node counts among its own ancestors
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                self.ancestors[node] |= self.ancestors[parent]
