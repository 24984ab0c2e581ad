"""Trains a Llama of transformers on English text, each rank with its own stages alone.

    python examples/hf_llama.py                                           # ranks are threads
    torchrun --nproc-per-node 2 examples/hf_llama.py                      # or processes
    torchrun --nproc-per-node 2 examples/hf_llama.py --checkpoint FOLDER  # a saved model's values

The model is built on the meta device, so no process ever holds all of it; with a checkpoint, a rank
reads its own tensors. It needs transformers. The text is read as bytes: a checkpoint is one of a
model with a vocabulary of at least 256; of any decoder of docs/models.md that has a plan.
"""

import argparse
from pathlib import Path

import torch
from text import read_text, text_options, training_batch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

import pipert
from pipert.integrations.transformers import open_checkpoint, split_by_plan


def main() -> None:
    parser = text_options(__doc__, layers=8)
    parser.add_argument("--checkpoint", type=Path, help="a folder that save_pretrained wrote")
    args = parser.parse_args()
    group = pipert.init()  # None unless torchrun started us
    num_ranks = 2 if group is None else group.size()
    torch.set_num_threads(1)  # one for each rank

    config = make_config(args)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stages = split_by_plan(model, args.stages or num_ranks, balance="uniform")
    checkpoint = open_checkpoint(model, args.checkpoint) if args.checkpoint else None
    pipe = pipert.Pipeline(
        pipert.materialize(stages, checkpoint, seed=0),
        schedule=args.schedule,
        num_microbatches=args.microbatches,
        num_ranks=num_ranks,
        loss_fn="output",  # which has it, given labels
        group=group,
        broadcast_loss=True,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=args.lr)
    _, text, _ = read_text(args.text, args.batch)
    for step in range(args.steps):
        ids, _ = training_batch(text, step, args.batch)
        loss = pipe.step(input_ids=ids, labels=ids).loss  # the model shifts labels itself
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if group is None or group.rank() == 0:
            print(f"step {step + 1:3}/{args.steps}  loss {loss.item():.9g}", flush=True)
    pipe.close()


def make_config(args: argparse.Namespace) -> PretrainedConfig:
    if args.checkpoint:
        return AutoConfig.from_pretrained(args.checkpoint)
    return LlamaConfig(
        num_hidden_layers=args.layers,
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=256,
    )


if __name__ == "__main__":
    main()
