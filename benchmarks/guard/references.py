"""Fixed pieces of work that the hot paths are held against.

They must never change: a reference that gets faster makes every stored ratio a lie. Each is of a like kind to what it
stands beside, so that a machine that is slower at the one is slower at the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def documents(rows: int = 60) -> Callable[[], None]:
    """JSON, zlib and SHA-256 of made-up figures: what reading a post is made of."""
    tree = [
        {"key": f"{n:032x}", "counts": list(range(n % 7, n % 7 + 24)), "share": n / 7} for n in range(rows)
    ]
    text = json.dumps(tree)

    def work() -> None:
        packed = zlib.compress(json.dumps(json.loads(text)).encode(), 1)
        hashlib.sha256(packed).hexdigest()

    return work


def columns(devices: int = 1000) -> Callable[[], None]:
    """Sums, sorts and comparisons of columns by numpy, in many small calls."""
    values = np.random.default_rng(0).uniform(size=(8, devices))

    def work() -> None:
        for _ in range(20):
            for row in values:
                chosen = row[row > 0.1]
                float(np.sort(chosen)[len(chosen) // 2]) + float(chosen.mean()) + float(chosen.var())

    return work


def products(size: int = 160, times: int = 4) -> Callable[[], None]:
    """Products of float32 matrices, scaled and clipped: what a network in torch is made of."""
    generator = np.random.default_rng(0)
    left, right = (generator.normal(size=(size, size)).astype(np.float32) for _ in range(2))

    def work() -> None:
        x = left
        for _ in range(times):
            x = np.clip(x @ right * np.float32(0.05), -1, 1)

    return work


def objects(nodes: int = 400) -> Callable[[], None]:
    """Dictionaries, strings and small arrays by the interpreter: what rewriting a graph is made of."""

    def work() -> None:
        graph: dict[str, dict[str, Any]] = {}
        for n in range(nodes):
            graph[f"node_{n}"] = {"inputs": [f"node_{n - 1}"], "value": np.full(4, n), "name": str(n)}
        users: dict[str, list[str]] = {}
        for name, node in graph.items():
            for source in node["inputs"]:
                users.setdefault(source, []).append(name)
        json.dumps(sorted(users, key=lambda name: (len(users[name]), name)))

    return work


def transactions(folder: Path, rows: int = 16) -> Callable[[], None]:
    """Rows of 1 kB into a plain SQLite database on the same disk, synced, in one transaction."""
    connection = sqlite3.connect(folder / "reference.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE reference (id INTEGER PRIMARY KEY, document BLOB)")
    content = b"\x5a" * 1024

    def work() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO reference (document) VALUES (?)", [(content,)] * rows)
        connection.execute("COMMIT")

    return work


def together(*works: Callable[[], None]) -> Callable[[], None]:
    """One after the other: for paths that compute and wait for the disk, in parts that differ between machines."""

    def work() -> None:
        for each in works:
            each()

    return work


def copies(kilobytes: int = 64, times: int = 4) -> Callable[[], None]:
    """Copies into an array and bytes through a pipe: what handing a sample to another process is made of."""
    source = np.zeros(kilobytes << 8, np.float32)
    target = np.empty_like(source)
    reader, writer = os.pipe()

    def work() -> None:
        for _ in range(times):
            np.copyto(target, source)
            os.write(writer, b"\x01")
            os.read(reader, 1)

    return work
