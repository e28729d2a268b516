"""Every operator inside a network that FSDP2 shards over two ranks, against plain PyTorch.

Run by `test_kernels_over_ranks.py` with TRITON_INTERPRET=1. Ranks see the same images, so that the
mean of their gradients is each one's; the matrix of routes has the same at one rank.
"""

import os
import sys

import routes
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from matrix_cases import CASES, Network, images

RANKS = 2


def check(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    for case in CASES:
        route = routes.sharded_first_order if case == "attention_jvp" else routes.sharded
        want, got = Network(case, torch.float64), Network(case)
        routes.PLAIN[route](want, images(case).double())
        route(got, images(case))
        assert all(p.to_local().numel() < 4 for p in got.parameters() if p.dim() == 1), case
        want, got = routes.gradients(want), routes.gradients(got)
        scale = max(g.abs().max() for g in want.values())
        for name in want:
            error = (got[name] - want[name]).abs().max()
            assert error <= 2**-16 * scale, f"{case} {name}: {error:.1e}"
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(check, (sys.argv[1],), nprocs=RANKS, start_method="fork")
    print("ranks agree")
