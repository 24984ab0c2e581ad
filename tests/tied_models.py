"""Small language models whose stages share their embedding's weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH = 13, 8


class Block(nn.Module):
    """A layer with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x)).tanh()


class Reader(nn.Module):
    """Reads words out of the hidden state, and adds them to it: a third use of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.linear(x, self.weight).softmax(-1) @ self.weight


def language_model(num_blocks: int = 4, *, tied: bool = True, reads: bool = False) -> nn.Sequential:
    """Embedding, blocks, a Reader in the middle if it `reads`, and a head; the same each time."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [Block() for _ in range(num_blocks)]
    if reads:
        layers[num_blocks // 2] = Reader()
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers, head)
    if tied:
        for name in names(model)[1:]:
            model.get_submodule(name.partition(".")[0]).weight = model[0].weight
    return model


def names(model: nn.Sequential) -> list[str]:
    """What the embedding's weight is called in it."""
    return [
        f"{i}.weight"
        for i, layer in enumerate(model)
        if isinstance(layer, nn.Embedding | Reader) or i == len(model) - 1
    ]


def words(rows: int, seed: int = 4) -> tuple[Tensor, Tensor]:
    """Sentences of five words, and the words that follow."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(VOCABULARY, (rows, 6), generator=generator)
    return x[:, :-1], x[:, 1:]


def cross_entropy(logits: Tensor, words: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), words.flatten())


def builders(stages: list[nn.Module]) -> list[Callable[[], nn.Module]]:
    """As ranks that load their stages apart have them: none knows another's objects."""
    import copy

    return [lambda stage=stage: copy.deepcopy(stage) for stage in stages]
