"""The commands of `dgan data`: each function is one, its arguments are flags."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dgan.command_checks import Given

_REDRAWN = 0.1  # seconds between two states of the progress bar


def pack(
    source: Given[str],
    out: Given[Path],
    /,
    *,
    split: str = "train",
    split_by_hash: str | None = None,
    pairs: Literal["auto", "none", "folders", "side-by-side"] = "auto",
    video: bool = False,
    labels: bool = True,
    classes: Path | None = None,
    ground_truth: Path | None = None,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    fit: Literal["crop", "pad"] = "crop",
    filter: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = "lanczos",
    encoding: Literal["png", "jpg", "webp", "keep"] = "png",
    samples_per_shard: int | None = None,
    shard_megabytes: float | None = None,
    limit: int | None = None,
    skip_corrupt: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
) -> None:
    """Make WebDataset shards of images, pairs, audio, video frames, or other shards.

    The same command again goes on with a pack that was cut off.

    Args:
        source: a folder of images (its subfolders are the classes; a .txt, its caption, and a .npy,
            its embedding, go with the image of that name), of .wav, .flac or .npy files;
            ImageNet's tars; MNIST's or CIFAR-10's files; shards; or `digits`, the handwritten
            digits that come with scikit-learn.
        out: folder for the shards.
        split: which part of a source that has parts; also the shards' name.
        split_by_hash: percentages such as 90/5/5: deal samples to train-, validation- and
            test-*.tar by a hash of their keys, so that none changes sides as the data grows.
        pairs: two folders a and b with equal names, or images whose halves are a and b.
        video: every folder of images is a clip, stored as one array [T, C, H, W].
        labels: store the classes.
        classes: ImageNet's classes in the order of their numbers, a line each, or meta.mat.
        ground_truth: of ImageNet's validation images, if it is not in the kit beside them.
        resolution: height and width to bring every image to.
        channels: 1 for grey, 3 for colour.
        fit: crop the middle square and resize it, or put the image on a black square.
        filter: with which resizing filter.
        encoding: of images that have to be changed; keep changes none, whatever its size.
        samples_per_shard: samples in one tar; 10,000 unless --shard-megabytes is given.
        shard_megabytes: size that no tar exceeds.
        limit: stop after so many samples.
        skip_corrupt: leave out what cannot be read, and say which.
        overwrite: replace the shards that are there.
        workers: threads; by default one a core.
    """
    from dgan.data import pack_source

    with _progress("packing") as progress:
        summary = pack_source(
            source,
            out,
            split=split,
            split_by_hash=split_by_hash,
            pairs=pairs,
            video=video,
            labels=labels,
            classes=classes,
            ground_truth=ground_truth,
            resolution=resolution,
            channels=channels,
            fit=fit,
            filter=filter,
            encoding=encoding,
            samples_per_shard=samples_per_shard,
            shard_megabytes=shard_megabytes,
            limit=limit,
            skip_corrupt=skip_corrupt,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
        )
    print(f"{summary.samples} samples in {len(summary.shards)} shards under {out}")
    for skipped in summary.skipped:
        print(f"left out: {skipped}")
    if len(summary.splits) > 1:
        print(", ".join(f"{name} {count}" for name, count in summary.splits.items()))
    if summary.kept:
        print(f"{summary.kept} of the shards were there already; --overwrite packs them anew")


def index(
    shards: Given[list[str]],
    /,
    *,
    checksums: bool = False,
    out: Path | None = None,
    workers: int | None = None,
) -> None:
    """Write the index beside shards: any WebDataset tars, of which only headers are read.

    Args:
        shards: paths, patterns or addresses, as in 'data/train-{000000..000127}.tar'.
        checksums: also store each shard's sha256, for which all of it is read; verify compares.
        out: a folder for the indexes, to be uploaded beside shards that have an address.
        workers: processes (threads, for addresses); by default one a core.
    """
    from dgan.data.indexing import Indexer, index_shards
    from dgan.data.shards import locate
    from dgan.data.sources import Opener

    begin, samples, size, opener = time.perf_counter(), 0, 0, Opener()
    found = locate(shards, opener)
    results = index_shards(found, Indexer(out, checksums, opener), workers=workers)
    with _progress("indexing") as progress:
        for done, indexed in enumerate(results, 1):
            samples, size = samples + indexed.samples, size + indexed.bytes
            progress(done, len(found))
    seconds = time.perf_counter() - begin
    print(
        f"{len(found)} shards indexed: {samples} samples in {size / 1e6:,.1f} MB of tars, "
        f"{seconds:.2f} s ({size / 1e6 / seconds:,.0f} MB/s, {samples / seconds:,.0f} samples/s)"
    )


def verify(
    shards: Given[list[str]], /, *, json: Path | None = None, workers: int | None = None
) -> None:
    """Check shards: every sample decodes, keys are unique, no field is missing, files are whole.

    What was packed, or indexed with --checksums, is compared with its checksum. Addresses are
    fetched into the temporary folder (TMPDIR), one shard after the other. Ends with exit code 1 if
    something is wrong.

    Args:
        shards: paths, patterns or addresses, as in 'data/train-{000000..000127}.tar'.
        json: also write the whole report here.
        workers: threads; by default one a core.
    """
    from dgan.data.shards import locate
    from dgan.data.sources import Opener
    from dgan.data.verify import verify_shards
    from dgan.data.verify_report import as_json, as_lines

    opener = Opener()
    found = locate(shards, opener)
    with _progress("verifying") as progress:
        report = verify_shards(found, opener=opener, workers=workers, progress=progress)
    print("\n".join(as_lines(report)))
    if json is not None:
        _write_json(json, as_json(report))
    if report.problems:
        raise SystemExit(1)


def show(
    shards_and_out: Given[list[str]],
    /,
    *,
    count: int = 64,
    columns: int | None = None,
    seed: int = 0,
) -> None:
    """Draw a contact sheet of samples, with their classes beneath: SHARDS OUT.png.

    Args:
        shards_and_out: paths, patterns or addresses, as in 'data/train-*.tar', and last the PNG.
        count: how many samples.
        columns: samples in a row; by default as many as make a square.
        seed: of the choice; the same one shows the same samples.
    """
    from dgan.data.contact_sheet import check_name, contact_sheet, save_sheet

    # One list: where a list is followed by another argument, the parser does not divide them.
    if len(shards_and_out) < 2:
        raise ValueError("name the shards and then the picture: dgan data show SHARDS OUT.png")
    shards, out = shards_and_out[:-1], Path(shards_and_out[-1])
    check_name(out)
    sheet = contact_sheet(shards, count=count, columns=columns, seed=seed)
    save_sheet(sheet, out)
    print(f"{out}: {sheet.width}×{sheet.height} pixels")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal's standard error, nothing elsewhere: `progress(done, total)` moves it."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task, last = bars.add_task(what, total=None), -_REDRAWN

        def move(done: int, total: int | None) -> None:
            nonlocal last
            if (now := time.perf_counter()) - last >= _REDRAWN:
                bars.update(task, completed=done, total=total)
                last = now

        yield move


def _write_json(path: Path, content: object) -> None:
    from dgan.data.aside import written_aside

    # What is no UTF-8 in a key is a lone surrogate, for which JSON has the same escape.
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with written_aside(path) as file:
        file.write(text.encode(errors="backslashreplace"))
