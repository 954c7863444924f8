"""Reads the file of an offline W&B run, for which wandb 0.31 has no public reader.

Format: a header of 7 bytes, then LevelDB's log format: blocks of 32 KiB (the first includes the header) of chunks with
a CRC-32, a length and a type; a record is a single chunk or a first, middle and last one. Each record is a protobuf
`Record`.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]: built at import

HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """Contents of the file: identity (a protobuf `RunRecord`), config, history rows in order, summary, uploads."""

    identity: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None


def read_offline_run(path: Path, patience: float = 60.0) -> OfflineRun:
    """Reads a finished run's `.wandb` file.

    A run's `finish` may return before wandb's service has written the last block, so reading is retried for `patience`
    seconds until the file has its exit record.

    Raises:
        ValueError: the file is damaged or not finished.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            run = _read(path)
            if run.exit_code is not None:
                return run
            raise ValueError(f"{path} has no exit record")
        except (ValueError, struct.error):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for payload in record_payloads(path.read_bytes()):
        record = Record.FromString(payload)
        match record.WhichOneof("record_type"):
            case "run":
                run.identity = record.run
                run.config |= _items(record.run.config.update)
            case "config":
                run.config |= _items(record.config.update)
            case "history":
                run.history.append(_items(record.history.item))
            case "summary":
                run.summary |= _items(record.summary.update)
            case "files":
                run.files += [file.path for file in record.files.files]
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def record_payloads(content: bytes) -> Iterator[bytes]:
    """Yields the payloads of a log, joined from their chunks. Raises ValueError at the first damaged chunk."""
    if content[: len(HEADER)] != HEADER:
        raise ValueError(f"starts with {content[: len(HEADER)]!r}, not {HEADER!r}")
    position, parts = len(HEADER), []
    while position < len(content):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK_HEADER.size:  # too short for a chunk: padding
            position += left_in_block
            continue
        crc, length, kind = CHUNK_HEADER.unpack_from(content, position)
        position += CHUNK_HEADER.size
        data = content[position : position + length]
        if len(data) != length or crc != zlib.crc32(data, zlib.crc32(bytes([kind]))):
            raise ValueError(f"damaged chunk of {length} bytes at byte {position}")
        if (kind in (FULL, FIRST)) == bool(parts):
            raise ValueError(f"chunk of type {kind} out of order at byte {position}")
        position += length
        parts.append(data)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def _items(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
