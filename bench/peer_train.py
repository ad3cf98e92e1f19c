#!/usr/bin/env python3
"""The peer of `./do bench train` and `./do bench sample`: the same net, batch and work in PyTorch
and diffusers.

One training step is forward, loss, backward, gradient clip, AdamW(fused=True) and a foreach EMA, as
ckptd-worker does it; one sampling step is a forward without gradients and DDIM's formula. Prints one
line: peer_img_s=... mode=... rss_mib=... base_rss_mib=... (after the imports, before the model).

usage: peer_train.py train|sample NET BATCH MODE [STEPS]
       NET: default | small | cifar      MODE: fp32|bf16-eager|compile-contiguous|channels_last
"""
import contextlib
import resource
import statistics
import sys
import time

import torch
from diffusers import DDIMScheduler, UNet2DModel

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


def rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Peer:
    def __init__(self, net, batch, mode):
        number, run, layout = mode.split("-")
        torch.manual_seed(1)
        self.batch = batch
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.model = UNet2DModel(in_channels=3, out_channels=3, **NETS[net])
        self.model = self.model.to(memory_format=self.layout)
        self.call = torch.compile(self.model) if run == "compile" else self.model
        self.bf16 = number == "bf16"
        self.size = NETS[net]["sample_size"]

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def random(self):
        return torch.randn(self.batch, 3, self.size, self.size).to(memory_format=self.layout)

    def train(self, steps):
        params = list(self.model.parameters())
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
        x, noise, t = self.random(), self.random(), torch.randint(0, 1000, (self.batch,))
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                y = self.call(x, t).sample
            torch.nn.functional.mse_loss(y.float(), noise).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)
            yield

    @torch.inference_mode()
    def sample(self, steps):
        self.model.eval()
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(50)
        x = self.random()
        for i in range(steps):
            t = scheduler.timesteps[i % 50]
            with self.autocast():
                y = self.call(x, t.expand(self.batch)).sample
            x = scheduler.step(y.float(), t, x).prev_sample
            yield


def main():
    if len(sys.argv) < 5 or sys.argv[1] not in ("train", "sample") or sys.argv[2] not in NETS:
        sys.exit(__doc__)
    work, net, batch, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    steps = int(sys.argv[5]) if len(sys.argv) > 5 else 5
    base = rss_mib()
    peer = Peer(net, batch, mode)
    times, begin = [], time.perf_counter()
    for _ in getattr(peer, work)(steps + 2):
        now = time.perf_counter()
        times.append(now - begin)
        begin = now
    rate = batch / statistics.median(times[2:])
    params = sum(p.numel() for p in peer.model.parameters())
    print(f"peer_img_s={rate:.2f} mode={mode} rss_mib={rss_mib():.0f} base_rss_mib={base:.0f}"
          f" params={params}")


if __name__ == "__main__":
    main()
