#!/usr/bin/env python3
"""Makes checkpoint-v2.header and refused/ from checkpoint-v1.header (the header that version 1
wrote, over 4 MiB of zeros). Written from docs/CHECKPOINT_FORMAT.md and RFC 8032, not from the
code, so that it also proves root and signature. Run in this folder; only needed again when a
format is added."""
import hashlib
import json
import struct

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
BASE_Y = 4 * pow(5, P - 2, P) % P


def recover_x(y):
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return x if x % 2 == 0 else P - x


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    both = D * x1 * x2 * y1 * y2
    return ((x1 * y2 + x2 * y1) * pow(1 + both, P - 2, P) % P,
            (y1 * y2 + x1 * x2) * pow(1 - both, P - 2, P) % P)


def multiply(point, scalar):
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def encode(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def keys(seed):
    hashed = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(hashed[:32], "little") & ~7 & ((1 << 254) - 1) | 1 << 254
    return scalar, hashed[32:], encode(multiply((recover_x(BASE_Y), BASE_Y), scalar))


def sign(seed, message):
    scalar, prefix, public = keys(seed)
    number = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    point = encode(multiply((recover_x(BASE_Y), BASE_Y), number))
    hashed = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little")
    return point + ((number + hashed * scalar) % L).to_bytes(32, "little")


def blake(data):
    return hashlib.blake2b(data, digest_size=32).digest()


OWN, OTHER = bytes([1] + [0] * 31), bytes([2] + [0] * 31)
NAME = "step-000004711-b0002.safetensors"
V1 = json.loads(open("checkpoint-v1.header", "rb").read()[8:])
rows = []


def fresh(version=1):
    header = json.loads(json.dumps(V1))
    header["__metadata__"]["ckptd_format"] = str(version)
    return header


def finish(header, signer=None, align=4096):
    """Root, then signature."""
    meta = header["__metadata__"]
    meta.pop("root")
    if signer:
        meta["weights_digest"] = blake(bytes(8)).hex()
    meta["root"] = "0" * 64
    if signer:
        meta["signer"] = keys(signer)[2].hex()
        meta["signature"] = "0" * 128
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    length = struct.pack("<Q", len(text))
    root = blake(b"ckptd checkpoint root 1\0" + length + text)
    text = text.replace(b'"root":"' + b"0" * 64, b'"root":"' + root.hex().encode())
    if signer:
        made = sign(signer, b"ckptd checkpoint signature 1\0" + root)
        text = text.replace(b'"signature":"' + b"0" * 128, b'"signature":"' + made.hex().encode())
    return length + text


def change_record(header, offset, data):
    record = bytearray.fromhex(header["__metadata__"]["record"])
    record[offset:offset + len(data)] = data
    record[-8:] = blake(bytes(record[:-8]))[:8]
    header["__metadata__"]["record"] = record.hex()


def refuse(name, data, state, words, published=NAME):
    open("refused/" + name, "wb").write(data)
    rows.append(f"{name} {published} {state} {words}")


signed = finish(fresh(2), OWN)
open("checkpoint-v2.header", "wb").write(signed)
plain = open("checkpoint-v1.header", "rb").read()

refuse("edited-step", plain.replace(b'"step":"4711"', b'"step":"4712"'), "corrupt",
       "its header does not match its root")
refuse("edited-parent", plain.replace(b'"parent_root":"d6', b'"parent_root":"d7'), "corrupt",
       "its header does not match its root")
refuse("older-under-newer-name", plain, "corrupt", "another file under this name",
       "step-000009999-b0002.safetensors")
header = fresh(3)
refuse("newer-format", finish(header), "refused", "its format is 3, this program reads up to 2")
header = fresh()
change_record(header, 24, bytes(range(16)))
refuse("other-run", finish(header), "refused", "belongs to another run")
header = fresh()
change_record(header, 44, b"\x01")
header["__metadata__"]["record"] = header["__metadata__"]["record"][:-2] + "00"
refuse("broken-record", finish(header), "corrupt", "its record is broken")
header = fresh()
header["unet.conv_in.weight"]["shape"] = [1024, 100]
refuse("other-tensors", finish(header), "corrupt", "its tensors are not")
header = fresh()
header["__metadata__"]["chunk_digests"] += "00" * 32
refuse("more-digests-than-data", finish(header), "corrupt", "chunk digests do not fit")
header = fresh()
header["__metadata__"].pop("parent_root")
refuse("no-parent", finish(header), "corrupt", "its metadata lack a member")
refuse("not-aligned", finish(fresh(), align=512), "corrupt",
       "its data do not begin at a whole page")
refuse("two-roots", plain.replace(b'"trained_seconds":"360"', b'"root":"' + b"0" * 14 + b'"', 1),
       "corrupt", "")
refuse("cut-header", plain[:5000], "corrupt", "")
refuse("other-key", finish(fresh(2), OTHER), "refused", "an untrusted key signed it")
refuse("other-signature", signed.replace(signed[signed.index(b'"signature":"') + 13:][:128],
       sign(OWN, b"ckptd checkpoint signature 1\0" + bytes(32)).hex().encode()), "corrupt",
       "its signature does not match its root")
header = fresh(2)
refuse("signature-taken-away", finish(header), "corrupt", "its signature is missing")
refuse("not-signed", plain, "refused", "it is not signed")

open("refused/INDEX", "w").write(
    "# file, the name it is put under, what it is called, and words of the reason\n" +
    "\n".join(rows) + "\n")
