#!/usr/bin/env python3
"""Makes catalog-v1.sqlite: a small catalog as version 1 wrote it. Written from docs/CATALOG.md of
that version, not from its code, so that it also proves the row digest. Run in this folder; only
needed again if the file is lost."""
import hashlib
import sqlite3
import struct

SCHEMA = """
CREATE TABLE checkpoint(
 id TEXT PRIMARY KEY NOT NULL, step INTEGER NOT NULL, branch INTEGER NOT NULL,
 state TEXT NOT NULL, root TEXT NOT NULL, parent_root TEXT NOT NULL,
 file_bytes INTEGER NOT NULL, loss REAL, trained_seconds INTEGER NOT NULL,
 keep INTEGER NOT NULL, created TEXT NOT NULL, readback TEXT NOT NULL,
 text TEXT NOT NULL, row_digest TEXT NOT NULL) STRICT;
CREATE INDEX checkpoint_by_step ON checkpoint(step, branch);
PRAGMA application_id = 1668985972;
PRAGMA user_version = 1;
"""
# The root of checkpoint-v1.header over data of zeros.
ROOT = "f81af0a3e4114c4fdb1a5f729a93758933035b6737c1f37d3b66885ab454866b"
PARENT = "11" * 32
ROWS = [
    # step, branch, state, root, parent, bytes, loss, trained, keep, created, readback, text
    (4711, 2, "verified", ROOT, PARENT, 4263936, 0.03125, 9422, 1,
     "2026-11-23T04:31:05.123Z", "direct", ""),
    (4600, 2, "verified", "22" * 32, PARENT, 4263936, None, 9200, 0,
     "2026-11-23T04:21:05.456Z", "", ""),
    (4500, 2, "missing", "33" * 32, PARENT, 4263936, 0.5, 9000, 0,
     "2026-11-23T04:11:05.789Z", "cache", "the file is gone"),
    (4000, 1, "deleted", "44" * 32, "00" * 32, 1 << 40, 0.1, 8000, 0,
     "2026-11-22T23:59:59.999Z", "direct", "by retention"),
]


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def row_digest(row, row_id):
    step, branch, state, root, parent, size, loss, trained, keep, created, readback, why = row
    number = lambda value: struct.pack("<Q", value)
    digest = hashlib.blake2b(digest_size=32)
    digest.update(text(row_id) + number(step) + number(branch) + text(state))
    digest.update(bytes.fromhex(root) + bytes.fromhex(parent) + number(size))
    digest.update(number(loss is None) + struct.pack("<d", 0.0 if loss is None else loss))
    digest.update(number(trained) + number(keep) + text(created) + text(readback) + text(why))
    return digest.hexdigest()


def main():
    database = sqlite3.connect("catalog-v1.sqlite")
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript(SCHEMA)
    for row in ROWS:
        row_id = "step-%09d-b%04d" % (row[0], row[1])
        values = (row_id,) + row + (row_digest(row, row_id),)
        database.execute("INSERT INTO checkpoint VALUES(%s)" % ",".join("?" * 14), values)
    database.commit()
    database.close()


main()
