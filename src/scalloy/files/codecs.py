"""Check of the codecs named in the metadata of an untrusted zarr store, before zarr opens it.

The metadata of an array name the codecs that decode it, and one of them (``pickle``) executes what it
decodes. Only codecs that turn bytes into numbers or text are accepted. The metadata are read as plain JSON,
without zarr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
MOST = 64 << 20  # maximum bytes of a metadata file
WHERE = ("filters", "compressor", "codecs", "index_codecs")
PREFIX = "numcodecs."
_KNOWN = (
    "blosc zlib gzip zstd lz4 lzma bz2 delta fixedscaleoffset astype quantize packbits categorize bitround "
    "shuffle base64 vlen-utf8 vlen-bytes vlen-array json2 msgpack2 crc32 crc32c adler32 fletcher32 "
    "jenkins_lookup3 zfpy pcodec bytes transpose sharding_indexed"
)
KNOWN = frozenset(_KNOWN.split())


def unknown_codecs(store: Path) -> list[str]:
    """List the codecs of a store that are not accepted, each with the array or group that names it."""
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
    """Yield every codec named anywhere in the metadata."""
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
    """Yield the name of one codec; nothing for ``None``."""
    if isinstance(codec, dict):
        yield from (str(codec[k]) for k in ("id", "name") if k in codec)
    elif codec is not None:
        yield str(codec)


def _known(name: str) -> bool:
    return name.removeprefix(PREFIX) in KNOWN
