"""Run a function in several real processes that form a gloo group."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ports import free_port

CONTEXT = multiprocessing.get_context("forkserver")
# The server imports these once; a rank then starts in a fraction of a second.
CONTEXT.set_forkserver_preload(["torch", "torch.distributed.fsdp", "dgan.train"])


def run_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 240
) -> list[Any]:
    """`function(*arguments)` on `size` ranks; the value each returned, by rank.

    Raises:
        AssertionError: a rank raised or did not end in time; all are stopped.
    """
    port = free_port()
    pipes, processes = [], []
    for rank in range(size):
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_rank, args=(rank, size, port, there, function, arguments))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    results, problems = [], []
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(timeout_s):
                raise AssertionError(f"rank {rank} of {size} did not answer in {timeout_s} s")
            ok, value = pickle.loads(pipe.recv_bytes())
            results.append(value)
            if not ok:
                problems.append(f"rank {rank}:\n{value}")
                break
    except EOFError:
        problems.append(f"rank {len(results)} died")
    finally:
        for process in processes:
            process.join(0 if problems else 30)
            process.kill()
    assert not problems, "\n".join(problems)
    return results


def _rank(
    rank: int, size: int, port: int, pipe: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        answer = (True, function(*arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    # Not `send`: torch would share tensors' memory, which ends with this process.
    pipe.send_bytes(pickle.dumps(answer))
