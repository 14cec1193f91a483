"""Two processes that stay alive for all tests and do what they are told, each as one rank."""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

COUNT = 2
PATIENCE = 120  # seconds until a rank that waits for another counts as hanging


class Ranks:
    """Ranks in processes of their own.

    A function of a test module, called with the number of the rank and the arguments, runs on all
    of them at a time, each with a seed of its own.
    """

    def __init__(self, ends: list[Connection]) -> None:
        self._ends = ends

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what the function returns on each rank; an exception is returned too."""
        for end in self._ends:
            end.send((function, arguments))
        for end in self._ends:
            assert end.poll(PATIENCE), f"{function.__name__}: a rank hangs"
        return [end.recv() for end in self._ends]


@contextlib.contextmanager
def two_ranks() -> Iterator[Ranks]:
    """Start the processes, with a process group of gloo among them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ends = []
    processes = []
    for number in range(COUNT):
        end, other = context.Pipe()
        process = context.Process(target=_serve, args=(number, port, other), daemon=True)
        process.start()
        ends.append(end)
        processes.append(process)
    try:
        yield Ranks(ends)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(number: int, port: int, end: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=number, world_size=COUNT)
    while True:
        function, arguments = end.recv()
        torch.manual_seed(1000 + number)
        try:
            end.send(function(number, *arguments))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            error.add_note(traceback.format_exc())
            end.send(error)
