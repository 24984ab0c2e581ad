"""Trains a transformer whose layers are mixtures of experts on English text, byte by byte.

    python examples/moe.py                            # ranks are threads
    torchrun --nproc-per-node 2 examples/moe.py       # or processes: the same losses, bit for bit

Each layer sends a token to two of its experts, and says how unevenly tokens are shared out. That is
a part of the loss, so each stage sends it to the last one, past those between.
"""

import torch
from text import CONTEXT, read_text, text_options, training_batch
from torch import nn
from torch.nn import functional

import pipert

IMBALANCE_WEIGHT = 0.01


class Experts(nn.Module):
    """A mixture of experts: two for each token, by its own choice."""

    def __init__(self, width, num_experts):
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(num_experts)
        )

    def forward(self, x):
        """Returns what the experts make of x, and 1 if they share it evenly, more if they don't."""
        tokens = x.flatten(0, 1)
        preferences = self.router(tokens).softmax(-1)
        weights, chosen = preferences.topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, places = (chosen == index).nonzero(as_tuple=True)
            output.index_add_(0, rows, weights[rows, places, None] * expert(tokens[rows]))
        shares = functional.one_hot(chosen, len(self.experts)).float().mean((0, 1))
        return output.view_as(x), len(self.experts) * shares @ preferences.mean(0)


class Block(nn.Module):
    def __init__(self, width, num_experts):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.experts = Experts(width, num_experts)

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).transpose(1, 3)
        attended = functional.scaled_dot_product_attention(*heads.unbind(2), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y, imbalance = self.experts(self.norm2(x))
        return x + y, imbalance


class Model(nn.Module):
    def __init__(self, num_layers, width, num_experts):
        super().__init__()
        self.byte, self.position = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, num_experts) for _ in range(num_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x):
        x = self.byte(x) + self.position.weight
        imbalances = []
        for block in self.blocks:
            x, imbalance = block(x)
            imbalances.append(imbalance)
        return self.head(self.norm(x)), torch.stack(imbalances).mean()


def loss_fn(output, target):
    """What is minimised, and what it is made of."""
    logits, imbalance = output
    entropy = functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    return entropy + IMBALANCE_WEIGHT * imbalance, {"entropy": entropy, "imbalance": imbalance}


def main():
    parser = text_options(__doc__, layers=4)
    parser.add_argument("--experts", type=int, default=4, help="in each layer")
    args = parser.parse_args()
    group = pipert.init()  # None unless torchrun started us
    num_ranks = 2 if group is None else group.size()
    torch.set_num_threads(1)  # one for each rank

    torch.manual_seed(0)  # every rank builds the same model, and keeps its own stages
    model = Model(args.layers, args.width, args.experts)
    text = read_text(args.text, args.batch)[1]
    x, _ = training_batch(text, 0, args.batch // args.microbatches)
    # Cut along a trace: forward keeps the layers' imbalances in a list, as it would anyhow, and the
    # cut finds which stages they come from. Blocks are called as they are: what they do may depend
    # on the values of tensors, as the choice of experts does.
    stages = pipert.split(model, args.stages or num_ranks, example_args=(x,))
    if group is None or group.rank() == 0:
        print(stages)
    pipe = pipert.Pipeline(
        stages,
        schedule=args.schedule,
        num_microbatches=args.microbatches,
        num_ranks=num_ranks,
        loss_fn=loss_fn,
        group=group,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=args.lr)
    for step in range(args.steps):
        x, y = training_batch(text, step, args.batch)
        result = pipe.step(x, target=y)
        optimizer.step()
        optimizer.zero_grad()
        if result.loss is not None:  # on the last stage's rank, where the metrics are, too
            parts = "  ".join(f"{name} {m.mean():.4f}" for name, m in result.metrics.items())
            print(f"step {step + 1:3}/{args.steps}  loss {result.loss:.9g}  {parts}", flush=True)
    pipe.close()


if __name__ == "__main__":
    main()
