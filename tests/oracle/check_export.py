#!/usr/bin/env python3
"""P12: what `ckptctl export` writes loads in diffusers and means the same there.

    ckptctl export --checkpoint CHECKPOINT DIR
    ninja -C BUILD tests/oracle/dump_sample && BUILD/tests/oracle/dump_sample CHECKPOINT OURS
    python3 check_export.py CHECKPOINT DIR [OURS]

Needs torch, diffusers and safetensors; no network. One line for each check; ends with the count and
exit code 0 or 1. OURS is what our own code computes from the same weights (dump_sample.c): the
predicted noise for the same input within fp32 tolerance, and the same DDIM images from the same noise
within 2/255. A net that is hardly trained can magnify rounding more than that: where diffusers in fp32
is farther from itself in fp64, twice that distance is allowed, and printed.
"""
import copy
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, UNet2DModel
from safetensors import safe_open
from safetensors.torch import load_file

EPS_TOLERANCE = 2e-4  # of values of order 1, after some 50 layers in fp32 with other sum orders
IMAGE_TOLERANCE = 2  # of 255
SECTIONS = ("unet", "ema", "exp_avg", "exp_avg_sq")

passed = failed = 0


def check(name, good, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"{'ok' if good else 'NOT OK'}: {name}{': ' + detail if detail else ''}")


def check_checkpoint(path):
    """The file itself, by safetensors' own library."""
    with safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        ema = {n.removeprefix("ema."): file.get_tensor(n) for n in names if n.startswith("ema.")}
    # The fillers between the sections have no name in any of them.
    known = {n for n in names if n.split(".")[0] in SECTIONS or n.startswith("pad.")}
    check("safetensors opens the checkpoint", len(names) > 0, f"{len(names)} tensors")
    check("only the four sections and their fillers", names == known, str(sorted(names - known)[:3]))
    wanted = {f"{section}.{name}" for section in SECTIONS for name in ema}
    check("the four sections have the same tensors", wanted <= names)
    check("metadata", metadata.get("format") == "pt" and "root" in metadata and "record" in metadata)
    return ema, json.loads(metadata["config"])


def check_unet(folder, ema):
    unet, info = UNet2DModel.from_pretrained(folder, subfolder="unet", output_loading_info=True)
    bad = {key: value for key, value in info.items() if value}
    check("UNet2DModel loads without missing or unexpected keys", not bad, str(bad) if bad else "")
    file = load_file(os.path.join(folder, "unet", "diffusion_pytorch_model.safetensors"))
    same = set(file) == set(ema) and all(
        file[name].dtype == ema[name].dtype and file[name].shape == ema[name].shape
        and file[name].numpy().tobytes() == ema[name].numpy().tobytes() for name in ema)
    check("the exported file holds the EMA section bit for bit", same)
    state = unet.state_dict()
    same = set(state) == set(ema) and all(
        state[name].numpy().tobytes() == ema[name].numpy().tobytes() for name in ema)
    check("so does the loaded model", same)
    return unet.eval()


def check_scheduler(pipeline, config):
    scheduler = pipeline.scheduler.config
    wanted = {
        "num_train_timesteps": int(config["timesteps"]),
        "beta_schedule": config["beta_schedule"],
        "beta_start": float(config["beta_start"]),
        "beta_end": float(config["beta_end"]),
        "prediction_type": "epsilon",
        "clip_sample": True,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    }
    wrong = {key: (scheduler.get(key), value) for key, value in wanted.items()
             if scheduler.get(key) != value}
    check("the scheduler is the run's", not wrong, str(wrong) if wrong else "")


def eps_of(unet, x, t, labels):
    classes = {} if labels is None else {"class_labels": labels}
    return unet(x, t, **classes).sample


def as_bytes(images):
    return ((images.double() / 2 + 0.5).clamp(0, 1) * 255).round()


@torch.no_grad()
def ddim_of(unet, folder, ours, labels, dtype):
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    if dtype == torch.float64:
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(int(ours["ddim_steps"].item()))
    image = ours["x"].to(dtype)
    for t in scheduler.timesteps:
        image = scheduler.step(eps_of(unet, image, t, labels), t, image, eta=0.0).prev_sample
    return image


@torch.no_grad()
def check_numbers(unet, folder, ours):
    labels = None if ours["labels"][0] < 0 else ours["labels"].long()
    eps = eps_of(unet, ours["x"], ours["timesteps"], labels)
    worst = (eps - ours["eps"]).abs().max().item()
    check("the same eps for the same input", worst < EPS_TOLERANCE,
          f"largest difference {worst:.2e} of values up to {eps.abs().max().item():.2f}")
    check("eps is not trivial", eps.std().item() > 1e-3)
    single = ddim_of(unet, folder, ours, labels, torch.float32)
    double = ddim_of(copy.deepcopy(unet).double(), folder, ours, labels, torch.float64)
    rounding = (as_bytes(single) - as_bytes(double)).abs().max().item()
    tolerance = max(IMAGE_TOLERANCE, 2 * rounding)
    difference = (as_bytes(single) - as_bytes(ours["images"])).abs()
    check("DDIM draws the same images from the same noise", difference.max() <= tolerance,
          f"largest difference {difference.max().item():.0f}/255, "
          f"{(difference == 0).double().mean().item():.2%} of the values equal; "
          f"diffusers in fp32 is up to {rounding:.0f}/255 from itself in fp64")
    return tolerance


def check_pipelines(folder, unet, ours, tolerance):
    pipeline = DDPMPipeline.from_pretrained(folder)
    check("DDPMPipeline loads", isinstance(pipeline.unet, UNet2DModel))
    if unet.config.num_class_embeds is None and ours is not None:
        import diffusers.pipelines.ddim.pipeline_ddim as module

        # The pipeline draws its own noise: hand it ours.
        module.randn_tensor = lambda shape, **_: ours["x"].clone()
        ddim = DDIMPipeline.from_pretrained(folder)
        ddim.set_progress_bar_config(disable=True)
        steps = int(ours["ddim_steps"].item())
        images = ddim(batch_size=len(ours["x"]), num_inference_steps=steps, output_type="np").images
        images = torch.tensor(images).permute(0, 3, 1, 2) * 2 - 1
        worst = (as_bytes(images) - as_bytes(ours["images"])).abs().max().item()
        check("DDIMPipeline makes the same images", worst <= tolerance, f"{worst:.0f}/255")
    return pipeline


def main():
    checkpoint, folder = sys.argv[1:3]
    ema, config = check_checkpoint(checkpoint)
    unet = check_unet(folder, ema)
    ours = load_file(sys.argv[3]) if len(sys.argv) > 3 else None
    tolerance = check_numbers(unet, folder, ours) if ours is not None else 0
    pipeline = check_pipelines(folder, unet, ours, tolerance)
    check_scheduler(pipeline, config)
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
