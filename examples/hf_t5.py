"""Trains a T5 of transformers to fill gaps in English text, cut along a trace of its forward.

    python examples/hf_t5.py                                # ranks are threads
    torchrun --nproc-per-node 2 examples/hf_t5.py           # or processes

What the encoder returns goes to each stage of the decoder, past those between; encoder, decoder and
head share one embedding, which stays one parameter. It needs transformers.
"""

import torch
from text import read_text, text_options, training_batch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

import pipert

GAP, FIRST_BYTE = 2, 3  # ids; 0 fills up and starts the decoder, 1 ends a text


def main() -> None:
    args = text_options(__doc__, layers=4).parse_args()
    group = pipert.init()  # None unless torchrun started us
    num_ranks = 2 if group is None else group.size()
    torch.set_num_threads(1)  # one for each rank

    model = make_model(args.layers, args.width)
    text = read_text(args.text, args.batch)[1]
    rows = args.batch // args.microbatches
    stages = pipert.split(
        model,
        at=cuts(args.layers, args.stages or num_ranks),
        example_kwargs=gaps_batch(text, 0, rows),
    )
    is_first = group is None or group.rank() == 0
    if is_first:
        print(stages)
    pipe = pipert.Pipeline(
        stages,
        schedule=args.schedule,
        num_microbatches=args.microbatches,
        num_ranks=num_ranks,
        loss_fn="output",  # which has it, given labels
        group=group,
        broadcast_loss=True,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=args.lr)
    for step in range(args.steps):
        loss = pipe.step(**gaps_batch(text, step, args.batch)).loss
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if is_first:
            print(f"step {step + 1:3}/{args.steps}  loss {loss.item():.9g}", flush=True)
    pipe.close()


def make_model(layers: int, width: int) -> T5ForConditionalGeneration:
    """The same one in each process. Encoder and decoder have `layers` each."""
    config = T5Config(
        num_layers=layers,
        num_decoder_layers=layers,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_heads=4,
        vocab_size=FIRST_BYTE + 256,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config).train()


def cuts(layers: int, num_stages: int) -> list[str]:
    """As many blocks of encoder and decoder together in each stage."""
    blocks = [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(layers)]
    return [blocks[len(blocks) * stage // num_stages] for stage in range(1, num_stages)]


def gaps_batch(text: Tensor, step: int, rows: int) -> dict[str, Tensor]:
    """Pieces of the text with a gap in the middle, and what was there."""
    ids = training_batch(text, step, rows)[0] + FIRST_BYTE
    begin, end = ids.shape[1] // 3, ids.shape[1] // 2
    gap = ids.new_full((rows, 1), GAP)
    return {
        "input_ids": torch.cat([ids[:, :begin], gap, ids[:, end:]], dim=1),
        "labels": ids[:, begin:end].contiguous(),
    }


if __name__ == "__main__":
    main()
