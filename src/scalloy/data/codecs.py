"""A look at the metadata of a zarr store of which nobody knows who made it, before zarr sees it.

An array says by which codecs it is decoded, and one of them (``pickle``) runs what it finds. Only codecs that
turn bytes into numbers or text are accepted. Knows nothing of zarr: what its metadata say is read as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
MOST = 64 << 20  # bytes of a file of metadata
WHERE = ("filters", "compressor", "codecs", "index_codecs")
PREFIX = "numcodecs."
_KNOWN = (
    "blosc zlib gzip zstd lz4 lzma bz2 delta fixedscaleoffset astype quantize packbits categorize bitround "
    "shuffle base64 vlen-utf8 vlen-bytes vlen-array json2 msgpack2 crc32 crc32c adler32 fletcher32 "
    "jenkins_lookup3 zfpy pcodec bytes transpose sharding_indexed"
)
KNOWN = frozenset(_KNOWN.split())


def unknown_codecs(store: Path) -> list[str]:
    """Codecs that a store names and that are not accepted, with the place of each."""
    out = []
    for file in _files(store):
        if file.stat().st_size > MOST:
            msg = f"{file.name} has {file.stat().st_size:,} bytes, more than any store needs"
            raise ValueError(msg)
        where = file.parent.relative_to(store).as_posix()
        out += [f"{name} in {where}" for name in named(json.loads(file.read_bytes())) if not _known(name)]
    return out


def _files(store: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(store):
        yield from (Path(folder) / name for name in METADATA if name in names)


def named(metadata: Any) -> Iterator[str]:
    """Every codec that is named anywhere in metadata."""
    if isinstance(metadata, list):
        for item in metadata:
            yield from named(item)
    elif isinstance(metadata, dict):
        for key, value in metadata.items():
            if key in WHERE:
                for codec in value if isinstance(value, list) else [value]:
                    yield from _name(codec)
            yield from named(value)


def _name(codec: Any) -> Iterator[str]:
    """The name of one codec; ``None`` is none."""
    if isinstance(codec, dict):
        yield from (str(codec[k]) for k in ("id", "name") if k in codec)
    elif codec is not None:
        yield str(codec)


def _known(name: str) -> bool:
    return name.removeprefix(PREFIX) in KNOWN
