"""Tensors for tests of kernels: views that begin anywhere, special values, what fp8 blocks hold."""

import torch

NUMBERS = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIAL = [
    0.0,
    -0.0,
    float("inf"),
    -float("inf"),
    float("nan"),
    65504.0,
    65520.0,
    1e-40,
    3.4e38,
    448,
]


def piece(numel, dtype, *, offset=0, seed=0, special=True):
    """A contiguous view that begins `offset` elements into its storage; magnitudes of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(numel + offset, generator=generator, dtype=torch.float64)
    scale = torch.randint(-30, 14, (numel + offset,), generator=generator)
    values = torch.ldexp(values, scale)
    if special and numel:
        places = torch.randint(0, numel + offset, (len(SPECIAL),), generator=generator)
        values[places] = torch.tensor(SPECIAL, dtype=torch.float64)
    return values.to(dtype)[offset:]


def bits(tensor):
    """The tensor's bits as numbers, so that NaN equals NaN if it is the same."""
    return tensor.detach().cpu().view(WORDS[tensor.element_size()])


def same_bits_or_nan(left, right):
    """Equal to the bit, but for the sign and payload of NaN."""
    nan = left.isnan()
    same = torch.equal(nan, right.isnan())
    return same and torch.equal(bits(left)[~nan], bits(right)[~nan])


def aligned(num_bytes):
    return -(-num_bytes // 16) * 16


def through_fp8_blocks(tensor):
    """What Note [Blocks of fp8] of csrc/kernels/slot_layout.h promises, with torch's own float8."""
    wide = tensor.float().reshape(-1)
    padded = torch.nn.functional.pad(wide, (0, -wide.numel() % 32)).reshape(-1, 32).double()
    largest = padded.abs().masked_fill(~padded.isfinite(), 0).amax(1, keepdim=True)
    exponent = torch.frexp(largest / 448)[1].double()  # largest / 448 is below 2 ** exponent
    exponent -= (largest == 448 * 2.0 ** (exponent - 1)).double()
    scale = 2.0 ** exponent.masked_fill(largest == 0, -126).clamp(-126, 119)
    codes = (padded / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    back = (codes.double() * scale).masked_fill(~padded.isfinite(), float("nan"))
    return back.reshape(-1)[: wide.numel()].float().to(tensor.dtype).reshape(tensor.shape)
