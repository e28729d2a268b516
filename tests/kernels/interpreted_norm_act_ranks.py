"""Batch norm over two ranks against one process that has both batches, on both backends.

Run by `test_kernels_over_ranks.py` with TRITON_INTERPRET=1.
"""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from norm_act_oracle import all_orders, assert_close, inputs

RANKS = 2
SHAPE = (4, 3, 5, 7)
OPTIONS = {"norm": "batch", "act": "silu"}


def check(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    whole = inputs(SHAPE, OPTIONS, "per_sample")
    # Each rank's mean is far from the others': its own statistics would be plainly wrong.
    whole[0][: SHAPE[0] // RANKS] += 3
    want = all_orders(*(t.double() for t in whole), backend="reference", **OPTIONS)
    mine = [t.chunk(RANKS)[rank] for t in whole]
    want = {name: t.chunk(RANKS)[rank] for name, t in want.items()}
    for backend in ("reference", "triton"):
        got = all_orders(*mine, backend=backend, process_group=dist.group.WORLD, **OPTIONS)
        assert_close(got, want, torch.float32, terms=mine[0].numel())
    alone = all_orders(*mine, backend="triton", **OPTIONS)
    assert (alone["y"] - want["y"]).abs().max() > 0.1
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(check, (sys.argv[1],), nprocs=RANKS, start_method="fork")
    print("ranks agree")
