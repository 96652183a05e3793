"""A network on one machine: ranks in namespaces of their own, with links of limited bandwidth and latency. Linux, root.

Each namespace has one device. `tc tbf` limits what it sends, in the kernel; a process of its own passes packets on from
device to device after the latency. `measure` says what a link does.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from surefoot.parallel.launch import die_with_parent

MTU = 16_000  # bytes of a packet
TUN = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI
NAME, ADDRESS = "surefoot", "10.77.0."


def run(*words: str) -> None:
    subprocess.run(" ".join(words).split(), check=True)


def make(rank: int, rate: float) -> int:
    """A namespace with a device that sends at most so many bits a second; returns the handle of its other end."""
    place, device = f"{NAME}{rank}", f"{NAME}{rank}"
    run("ip netns add", place)
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, TUN[0], struct.pack("16sH22x", device.encode(), TUN[1]))
    run("ip link set", device, "netns", place)
    run("ip -n", place, "address add", f"{ADDRESS}{rank + 1}/24 dev", device)
    run("ip -n", place, f"link set mtu {MTU} up dev", device)
    run("ip -n", place, "link set up dev lo")
    run("tc -n", place, "qdisc add dev", device, f"root tbf rate {rate:.0f} burst {4 * MTU} limit 16000000")
    return handle


def relay(handles: list[int], latency: float) -> None:
    """Pass packets on, each `latency` seconds after it was sent."""
    waiting = deque[tuple[float, int, bytes]]()
    while True:
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for handle in select.select(handles, [], [], wait)[0]:
            packet = os.read(handle, MTU)
            if packet[0] >> 4 == 4 and 0 < packet[19] <= len(handles):  # IPv4; the last byte of where to
                waiting.append((time.monotonic() + latency, handles[packet[19] - 1], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            with suppress(BlockingIOError):
                os.write(*waiting.popleft()[1:])


@contextmanager
def network(count: int, rate: float, latency: float) -> Iterator[list[str]]:
    """So many namespaces; the beginning of a command that runs in the one of its rank, $RANK."""
    with ExitStack() as stack:
        handles = []
        for rank in range(count):
            stack.callback(subprocess.run, ["ip", "netns", "del", f"{NAME}{rank}"], stderr=subprocess.DEVNULL)
            handles.append(make(rank, rate))
            stack.callback(os.close, handles[-1])
        child = os.fork()
        if child == 0:
            die_with_parent()
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            relay(handles, latency)
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, signal.SIGKILL)
        yield ["sh", "-c", f'GLOO_SOCKET_IFNAME={NAME}$RANK exec ip netns exec {NAME}$RANK "$@"', "sh"]


def measure(rate: float, latency: float) -> dict[str, float]:
    """Of a link between two namespaces: seconds of a small message, one way, and of a byte among 8 MB."""
    with network(2, rate, latency) as within:
        ends = [
            subprocess.Popen([*within, sys.executable, __file__, str(rank)], env=os.environ | {"RANK": str(rank)},
                             stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]  # fmt: skip
        there_and_back, large = map(float, [end.communicate()[0] for end in ends][1].split())
    return {"latency_s": there_and_back / 2, "seconds_per_byte": (large - there_and_back) / 8e6}


def answer() -> None:
    """One end of `measure`: every message of known length is answered by one byte."""
    with socket.create_server((f"{ADDRESS}1", 1024)) as server, server.accept()[0] as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in [1] * 101 + [8_000_000] * 5:
            while size:
                size -= len(link.recv(min(size, 1 << 20)))
            link.sendall(b".")


def ask() -> None:
    """The other end: prints the medians of both."""
    begun = time.monotonic()
    while True:
        try:
            link = socket.create_connection((f"{ADDRESS}1", 1024))
            break
        except ConnectionRefusedError:  # it is not there yet
            if time.monotonic() > begun + 60:
                raise
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = list[float]()
    for size in [1] * 101 + [8_000_000] * 5:
        began = time.perf_counter()
        link.sendall(bytes(size))
        link.recv(1)
        seconds.append(time.perf_counter() - began)
    print(sorted(seconds[:101])[50], sorted(seconds[101:])[2])


if __name__ == "__main__":
    ask() if sys.argv[1] == "1" else answer()
