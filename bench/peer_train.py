#!/usr/bin/env python3
"""The peer of `./do bench train`: the same net, batch and work per step in PyTorch and diffusers.

One step is forward, loss, backward, gradient clip, AdamW(fused=True) and a foreach EMA, as
ckptd-worker does it. Prints one line: peer_img_s=... mode=... rss_mib=...

usage: peer_train.py NET BATCH [STEPS]      NET: default | small | cifar
"""
import resource
import statistics
import sys
import time

import torch
from diffusers import UNet2DModel

NETS = {
    "default": dict(sample_size=32, block_out_channels=(32, 64, 128), layers_per_block=1,
                    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
                    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                    attention_head_dim=32, norm_num_groups=8),
    "small": dict(sample_size=32, block_out_channels=(64, 128, 128, 128), layers_per_block=2,
                  down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                  attention_head_dim=None, norm_num_groups=32),
    "cifar": dict(sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
                  down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                  attention_head_dim=None, norm_num_groups=32, downsample_padding=0,
                  flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6),
}


def measure(net, batch, steps, channels_last):
    torch.manual_seed(1)
    model = UNet2DModel(in_channels=3, out_channels=3, **NETS[net])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    params = list(model.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    size = NETS[net]["sample_size"]
    x = torch.randn(batch, 3, size, size).to(memory_format=layout)
    noise = torch.randn(batch, 3, size, size).to(memory_format=layout)
    t = torch.randint(0, 1000, (batch,))
    times = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(x, t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)
        times.append(time.perf_counter() - begin)
    return batch / statistics.median(times[2:])


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in NETS:
        sys.exit(__doc__)
    net, batch = sys.argv[1], int(sys.argv[2])
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    results = [(measure(net, batch, steps, layout), "channels_last" if layout else "contiguous")
               for layout in (False, True)]
    rate, mode = max(results)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peer_img_s={rate:.2f} mode=fp32-eager-{mode} rss_mib={rss:.0f}")


if __name__ == "__main__":
    main()
