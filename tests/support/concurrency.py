"""The same work in many threads, and in a process that was forked from one with threads."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import torch

from support.waiting import SECONDS


def assert_threads_may_share(solve, batches):
    """``solve(z)`` gives each thread, many times, what it gives alone."""
    expected = [solve(z) for z in batches]

    @torch.no_grad()
    def many_times(z):
        return [solve(z) for _ in range(20)]

    with ThreadPoolExecutor(len(batches)) as pool:
        for alone, together in zip(expected, pool.map(many_times, batches), strict=True):
            assert all(torch.equal(alone, one) for one in together)


def assert_a_fork_may(solve, z, threads):
    """``solve(z)`` gives a forked process the same, which lacks the threads of its parent, torch's own among them."""
    torch.set_num_threads(threads)
    expected = solve(z).flatten().tolist()

    @torch.no_grad()
    def work():
        assert solve(z).flatten().tolist() == expected

    child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    child.start()
    child.join(timeout=SECONDS)
    assert child.exitcode == 0, "the child hangs" if child.is_alive() else "the child gets another answer"
