#!/usr/bin/env python3
"""The peers of `./do bench checkpoint`: torch.save with fsync and torch.load past the cache, and
PyTorch DCP's async_save, of the same four sections: weights, EMA and two moments.

Nobody of them reads back or checks what was written. Prints one line.

usage: peer_checkpoint.py DIR PARAMETERS
"""
import os
import shutil
import sys
import time
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

TENSORS = 300  # a section of the 36 M net has about as many
SECTIONS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def make_state(count):
    return {section: {f"tensor.{i}": torch.rand(count // TENSORS) for i in range(TENSORS)}
            for section in SECTIONS}


def drop_cache(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def save_and_load(folder, state):
    path = os.path.join(folder, "peer.pt")
    begun = time.perf_counter()
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    saved = time.perf_counter()
    drop_cache(path)
    dropped = time.perf_counter()
    torch.load(path, weights_only=True)
    loaded = time.perf_counter()
    os.unlink(path)
    return saved - begun, loaded - dropped


def save_async(folder, state):
    """How long the caller is held up, and until the files are there."""
    path = os.path.join(folder, "peer.dcp")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    begun = time.perf_counter()
    future = dcp.async_save(state, checkpoint_id=path)
    returned = time.perf_counter()
    future.result()
    done = time.perf_counter()
    dist.destroy_process_group()
    shutil.rmtree(path)
    return returned - begun, done - begun


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    state = make_state(int(sys.argv[2]))
    save_s, load_s = save_and_load(sys.argv[1], state)
    stall_s, dcp_s = save_async(sys.argv[1], state)
    print(f"torch_save_ms={save_s * 1e3:.0f} torch_load_ms={load_s * 1e3:.0f}"
          f" dcp_stall_ms={stall_s * 1e3:.0f} dcp_save_ms={dcp_s * 1e3:.0f}")


if __name__ == "__main__":
    main()
