#!/usr/bin/env python3
"""Ten training steps of a small UNet2DModel by PyTorch and diffusers: the reference of
tests/unit/test_ten_steps.c.

    python3 tests/oracle/make_ten_steps.py > tests/oracle/ten_steps.ref

Needs torch and diffusers. Everything is given, nothing is drawn: docs/MODEL.md's hash fill makes
the weights (tensors sorted by name, index i) and, for step s = 0..9 and batch b = 0..1,

    x_t   fill(0x10000 + 2 s),  eps   fill(0x10000 + 2 s + 1)      [2, 3, 8, 8], v itself
    t     (37 + 211 (2 s + b)) mod 1000

Loss mean((y - eps)^2), clip_grad_norm_ 1, AdamW (lr 1e-3 constant, no warm-up, betas .9 .99,
weight decay 1e-4, eps 1e-8), then the EMA with decay 1 - n^-0.75 (n = 1, 2, ...; at most 0.999).

The steps run in fp64, so that the reference has no rounding of its own, and once more in fp32 to
say how far PyTorch itself is away from them.
"""
import sys

import diffusers
from diffusers.utils import logging
import numpy as np
import torch

STEPS, BATCH, SIDE = 10, 2, 8
LR, BETAS, WEIGHT_DECAY, EPS, CLIP = 1e-3, (0.9, 0.99), 1e-4, 1e-8, 1.0
EMA_POWER, EMA_MAX = 0.75, 0.999
SAMPLES = 8


def fill(index, count):
    h = (np.arange(count, dtype=np.uint64) + np.uint64(index) * np.uint64(0x9E3779B9)) & np.uint64(
        0xFFFFFFFF
    )
    h = h.astype(np.uint32)
    with np.errstate(over="ignore"):
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x7FEB352D)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x846CA68B)
        h ^= h >> np.uint32(16)
    return h.astype(np.float64) / 2**31 - 1


def tensor(index, shape, dtype):
    values = fill(index, int(np.prod(shape))).astype(np.float32)
    return torch.from_numpy(values).reshape(shape).to(dtype)


def make_model(dtype):
    model = diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    state = {}
    for index, (name, old) in enumerate(sorted(model.state_dict().items())):
        v = fill(index, old.numel())
        if old.dim() >= 2:
            v = v / np.sqrt(np.prod(old.shape[1:]))
        elif name.endswith("weight"):
            v = 1 + 0.1 * v
        else:
            v = 0.1 * v
        state[name] = torch.from_numpy(v.astype(np.float32)).reshape(old.shape)
    model.load_state_dict(state)
    return model.to(dtype)


def train(dtype):
    model = make_model(dtype)
    names = sorted(dict(model.named_parameters()))
    params = dict(model.named_parameters())
    ema = {name: params[name].detach().clone() for name in names}
    optimizer = torch.optim.AdamW(
        [params[name] for name in names], lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPS
    )
    losses, norms = [], []
    for s in range(STEPS):
        x = tensor(0x10000 + 2 * s, (BATCH, 3, SIDE, SIDE), dtype)
        eps = tensor(0x10000 + 2 * s + 1, (BATCH, 3, SIDE, SIDE), dtype)
        t = torch.tensor([(37 + 211 * (BATCH * s + b)) % 1000 for b in range(BATCH)])
        loss = torch.mean((model(x, t).sample - eps) ** 2)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
        decay = 0.0 if s == 0 else min(1 - (s + 1) ** -EMA_POWER, EMA_MAX)
        for name in names:
            ema[name] -= (1 - decay) * (ema[name] - params[name].detach())
    weights = {name: params[name].detach().double() for name in names}
    return losses, norms, weights, {name: ema[name].double() for name in names}


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    losses, norms, weights, ema = train(torch.float64)
    losses32, norms32, weights32, ema32 = train(torch.float32)
    print("# made by tests/oracle/make_ten_steps.py: do not edit")
    print(f"# torch {torch.__version__}, diffusers {diffusers.__version__}, fp64")
    far = max(abs(a / b - 1) for a, b in zip(losses32, losses))
    print(f"# PyTorch's own fp32: losses within {far:.1e} of these,")
    far = max(abs(a / b - 1) for a, b in zip(norms32, norms))
    print(f"# gradient norms within {far:.1e},")
    real = [name for name in weights if not name.endswith("to_k.bias")]
    far = max((weights32[name] - weights[name]).abs().max().item() for name in real)
    print(f"# weights (all but to_k.bias, whose true gradient is 0) within {far:.1e}")
    for s in range(STEPS):
        print(f"step {s} {losses[s]:.12g} {norms[s]:.12g}")
    for section, values in (("unet", weights), ("ema", ema)):
        for name, value in values.items():
            flat = value.flatten()
            shape = "x".join(str(n) for n in value.shape)
            at = [k * (flat.numel() - 1) // (SAMPLES - 1) for k in range(SAMPLES)]
            picked = " ".join(f"{flat[i].item():.9g}" for i in at)
            print(f"{section} {name} {shape} {flat.norm().item():.9g} {flat.sum().item():.9g} {picked}")


if __name__ == "__main__":
    sys.exit(main())
