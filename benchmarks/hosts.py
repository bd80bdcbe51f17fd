"""Two machines with a cable between them, as far as programs can tell: network namespaces (iproute2, root)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

PORT = 29511


class Host(NamedTuple):
    """A namespace, its end of the cable, and its address there."""

    name: str
    cable: str
    address: str


@contextmanager
def pair() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else; gone after the block.

    Raises:
        OSError, subprocess.CalledProcessError: iproute2 is missing, or this user may not.
    """
    one, two = (Host(f"pneumo-{k}-{os.getpid()}", f"pn{os.getpid() % 10**8}{k}", f"10.77.0.{k + 1}") for k in (0, 1))
    try:
        for host in (one, two):
            _ip("netns", "add", host.name)
        _ip("link", "add", one.cable, "type", "veth", "peer", "name", two.cable)
        for host in (one, two):
            _ip("link", "set", host.cable, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            _ip("-n", host.name, "link", "set", host.cable, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield one, two
    finally:
        for host in (one, two):
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, timeout=20)


def commands(hosts: tuple[Host, Host], program: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """What starts a Python program on both by `accelerate launch`, one process each, and the variables it needs.

    Accelerate's `--multi_gpu` means several processes, on CPUs too; its `--cpu` would need MPI.
    """
    launch = ["accelerate.commands.launch", "--multi_gpu", "--mixed_precision=no", "--dynamo_backend=no"]
    launch += ["--num_machines=2", "--num_processes=2", "--rdzv_backend=static"]
    launch += [f"--main_process_ip={hosts[0].address}", f"--main_process_port={PORT}"]
    return [
        (
            ["ip", "netns", "exec", host.name, sys.executable, "-m", *launch, f"--machine_rank={rank}", *program],
            {"GLOO_SOCKET_IFNAME": host.cable},
        )
        for rank, host in enumerate(hosts)
    ]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
