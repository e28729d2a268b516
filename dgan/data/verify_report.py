"""What `verify_shards` found, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from .verify import Report

_SHOWN = 12  # rows of a table or problems of a kind; the JSON has all


def as_lines(report: Report) -> Iterator[str]:
    """The report to read."""
    samples, size = sum(report.samples.values()), sum(report.sizes.values())
    verdict = f"{len(report.problems)} problems" if report.problems else "no problem"
    yield f"{len(report.shards)} shards, {samples:,} samples, {_bytes(size)}: {verdict}"
    if samples:
        yield f"  a shard   {_span(list(report.sizes.values()))}"
        yield f"  a sample  {_span(report.sample_bytes.tolist())}"
    for name, shapes in sorted(report.shapes.items()):
        yield f"  .{name:8} {_most_common(shapes)}"
    yield from _classes(report)
    if report.unchecked:
        yield f"  not decoded, for want of a decoder: .{', .'.join(sorted(report.unchecked))}"
    for shard, digest in list(report.checksums.items())[:_SHOWN]:
        yield f"  sha256 {digest}  {shard.name}"
    if len(report.checksums) > _SHOWN:
        yield f"  … and {len(report.checksums) - _SHOWN} more checksums (--json has all)"
    for kind, count in Counter(problem.kind for problem in report.problems).most_common():
        yield f"{kind}: {count}"
        some = [problem for problem in report.problems if problem.kind == kind]
        for problem in some[:_SHOWN]:
            where = f"{problem.shard}: {problem.key!r}" if problem.key else problem.shard
            yield f"  {where} {problem.what}"
        if count > _SHOWN:
            yield f"  … and {count - _SHOWN} more (--json has all)"


def as_json(report: Report) -> dict[str, Any]:
    """The whole report as plain values."""
    return {
        "samples": sum(report.samples.values()),
        "bytes": sum(report.sizes.values()),
        "shards": [
            {
                "path": str(shard),
                "samples": report.samples.get(shard),
                "bytes": report.sizes.get(shard),
                "sha256": report.checksums.get(shard),
            }
            for shard in report.shards
        ],
        "shapes": {name: dict(shapes) for name, shapes in report.shapes.items()},
        "classes": {str(label): count for label, count in sorted(report.labels.items())},
        "class_names": list(report.class_names),
        "unchecked": sorted(report.unchecked),
        "problems": [problem._asdict() for problem in report.problems],
    }


def _classes(report: Report) -> Iterator[str]:
    if not (counts := report.labels):
        return
    least, most = min(counts.values()), max(counts.values())
    span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    yield f"  {len(counts)} classes, {min(counts)} to {max(counts)}, of {span} samples"
    if len(counts) > 2 * _SHOWN:
        return
    for label, count in sorted(counts.items()):
        name = report.class_names[label] if label < len(report.class_names) else ""
        bar = "█" * max(1, round(30 * count / most))
        yield f"  {label:5} {name:12.12} {count:8,} {bar}"


def _most_common(shapes: Counter[str]) -> str:
    total = sum(shapes.values())
    parts = [f"{shape} ×{n:,}" for shape, n in shapes.most_common(4) if shape]
    rest = f"; {len(shapes) - 4:,} more" if len(shapes) > 4 else ""
    return f"{total:,}" + (": " if parts else "") + ", ".join(parts) + rest


def _span(values: list[int]) -> str:
    middle = int(np.median(values))
    return f"{_bytes(min(values))} to {_bytes(max(values))}, median {_bytes(middle)}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
