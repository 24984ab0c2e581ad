"""What train_gpt.py trains: a GPT that reads and writes a text byte by byte."""

import torch
import torch.distributed as dist
from text import CONTEXT
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 128, 4, 4


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.byte, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, x):
        return self.byte(x) + self.position.weight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).transpose(1, 3)
        attended = functional.scaled_dot_product_attention(*heads.unbind(2), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def gpt():
    blocks = [Block() for _ in range(LAYERS)]
    return nn.Sequential(Embedding(), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))


def loss_fn(logits, target):
    """Nats a byte."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def sample(pipe, text, num_bytes, group):
    """Continues prompts, int64 of shape (num_microbatches, CONTEXT); returns the first as text."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_bytes):
        logits = pipe(text[:, -CONTEXT:])
        byte = torch.zeros(len(text), 1, dtype=torch.long)
        if logits is not None:  # on the rank of the last stage
            byte = torch.multinomial((logits[:, -1] / 0.7).softmax(-1), 1, generator=generator)
        if group is not None:
            dist.all_reduce(byte, group=group)  # the other ranks add zero
        text = torch.cat([text, byte], dim=1)
    return bytes(text[0].tolist()).decode(errors="replace")
