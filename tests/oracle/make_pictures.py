#!/usr/bin/env python3
"""Small pictures in every mode with the RGB they stand for: the reference of
tests/unit/test_image.c and test_data_folder.c.

    python3 tests/oracle/make_pictures.py > tests/oracle/pictures.ref

PNG files are written here byte by byte (all fifteen pairs of colour type and depth, plain and
interlaced, with and without tRNS), so that no PNG library is its own witness. JPEG files are
written and read by Pillow; CMYK to RGB is this script's own formula. Lines:

    name  width  height  tolerance  file (hex)  rgb (hex)
"""
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

WIDTH, HEIGHT = 11, 7
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def values(seed, shape, top):
    return np.random.Generator(np.random.PCG64(seed)).integers(0, top, shape, endpoint=True)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def pack_rows(samples, depth):
    """Each row with filter 0, samples of less than a byte packed from the left."""
    out = b""
    for row in samples:
        flat = row.reshape(-1)
        if depth == 16:
            out += b"\0" + flat.astype(">u2").tobytes()
        elif depth == 8:
            out += b"\0" + flat.astype(np.uint8).tobytes()
        else:
            bits = "".join(format(int(v), f"0{depth}b") for v in flat)
            bits += "0" * (-len(bits) % 8)
            out += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return out


def png(samples, colour, depth, interlaced, extra=b""):
    height, width = samples.shape[:2]
    if interlaced:
        raw = b""
        for x, y, dx, dy in PASSES:
            part = samples[y::dy, x::dx]
            if part.size:
                raw += pack_rows(part, depth)
    else:
        raw = pack_rows(samples, depth)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(raw, 9))
        + chunk(b"IEND", b"")
    )


def over_white(colour, alpha, top):
    """Exact, rounded half up, from samples of 0..top to bytes."""
    colour, alpha = colour.astype(object), alpha.astype(object)
    total = colour * alpha + top * (top - alpha)
    return ((2 * total * 255 + top * top) // (2 * top * top)).astype(np.uint8)


def spread(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def png_case(seed, colour, depth, interlaced, transparent):
    top = 2**depth - 1
    samples = values(seed, (HEIGHT, WIDTH, CHANNELS[colour]), top)
    opaque = np.full((HEIGHT, WIDTH, 3), top)
    extra = b""
    if colour == PALETTE:
        palette = values(seed + 1000, (2**depth, 3), 255)
        alpha = values(seed + 2000, (2**depth,), 255) if transparent else np.full(2**depth, 255)
        extra = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if transparent:
            extra += chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
        index = samples[..., 0]
        rgb = over_white(palette[index], spread(alpha[index]), 255)
    elif colour in (GREY, RGB):
        wide = spread(samples[..., 0]) if colour == GREY else samples
        alpha = opaque
        if transparent:
            key = samples[3, 5]
            extra = chunk(b"tRNS", b"".join(struct.pack(">H", int(v)) for v in key))
            alpha = np.where((samples == key).all(axis=2)[..., None], 0, opaque)
        rgb = over_white(wide, alpha, top)
    else:
        wide = spread(samples[..., 0]) if colour == GREY_ALPHA else samples[..., :3]
        rgb = over_white(wide, spread(samples[..., -1]), top)
    return png(samples, colour, depth, interlaced, extra), rgb


def scene(mode, width=WIDTH, height=HEIGHT):
    """Smooth, so that chroma subsampling keeps it; not symmetric in any way."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [40 + 15 * x, 60 + 20 * y, 200 - 9 * x - 8 * y, 30 + 2 * x + 3 * y]
    return Image.fromarray(np.stack(bands, axis=2).astype(np.uint8)[..., : len(mode)].squeeze(), mode)


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def cmyk_rgb(data):
    image = Image.open(io.BytesIO(data))
    assert image.mode == "CMYK"
    ink = np.asarray(image).astype(int)  # Pillow undoes Adobe's inversion: 255 is full ink
    return ((255 - ink[..., :3]) * (255 - ink[..., 3:]) * 2 + 255) // 510


def emit(name, data, rgb, tolerance):
    rgb = np.asarray(rgb).astype(np.uint8)
    print(name, rgb.shape[1], rgb.shape[0], tolerance, data.hex(), rgb.tobytes().hex())


def emit_pngs():
    seed = 1
    depths = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
    names = {GREY: "grey", RGB: "rgb", PALETTE: "palette", GREY_ALPHA: "greyalpha", RGBA: "rgba"}
    for colour, bits in depths.items():
        for depth in bits:
            for interlaced in (False, True):
                for transparent in (False, True) if colour in (GREY, RGB, PALETTE) else (False,):
                    data, rgb = png_case(seed, colour, depth, interlaced, transparent)
                    name = f"{names[colour]}{depth}" + "-trns" * transparent + "-adam7" * interlaced
                    emit(name + ".png", data, rgb, 0)
                    seed += 1


def emit_jpegs():
    colour = scene("RGB")
    kinds = {
        "grey.jpg": jpeg(scene("L")),
        "colour.jpg": jpeg(colour, subsampling=0),
        "subsampled.JPEG": jpeg(colour, subsampling=2),
        "progressive.jpg": jpeg(colour, progressive=True),
    }
    for name, data in kinds.items():
        emit(name, data, Image.open(io.BytesIO(data)).convert("RGB"), 2)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = jpeg(scene("RGB", 16, 8), subsampling=0, exif=exif)
        emit(f"orientation{orientation}.jpg", data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))), 2)
    cmyk = jpeg(scene("CMYK"))
    emit("cmyk.jpg", cmyk, cmyk_rgb(cmyk), 2)
    marker = cmyk.index(b"\xff\xee\x00\x0eAdobe")
    ycck = cmyk[: marker + 15] + b"\x02" + cmyk[marker + 16 :]
    emit("ycck.jpg", ycck, cmyk_rgb(ycck), 2)
    plain = cmyk[:marker] + cmyk[marker + 16 :]  # no Adobe marker: inverted all the same
    emit("cmyk-plain.jpg", plain, cmyk_rgb(plain), 2)


def main():
    print("# made by tests/oracle/make_pictures.py: do not edit")
    emit_pngs()
    emit_jpegs()
    exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    samples = values(99, (HEIGHT, WIDTH, 3), 255)
    data = png(samples, RGB, 8, False, chunk(b"eXIf", exif))
    emit("rgb8-exif6.png", data, np.rot90(samples, -1), 0)


if __name__ == "__main__":
    main()
