"""Hosts of their own on one machine, for scaling.py: each a network namespace with a link of limited rate to a bridge,
and a fixed share of the cores. On Linux, as root, with the commands `ip` and `tc`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

NAME = "alexnet"  # of the bridge, of the namespaces and of the bridge's ends of the links
NAMES_OF_HOSTS = Path("/etc/netns")  # `ip netns exec` shows a namespace its own /etc/hosts from here
PERIOD = 20_000  # microseconds in which a host may use its share


def address(host: int) -> str:
    """Of a host, from 0."""
    return f"10.77.0.{host + 1}"


class Hosts:
    """So many hosts; to be made by `hosts`."""

    def __init__(self, number: int):
        self.number = number
        self._shares = [_group(f"{NAME}{host}") for host in range(number)]

    def limit(self, gigabits: float) -> None:
        """What each host may send, and be sent, a second."""
        rate = f"{gigabits:g}gbit"
        burst = f"{max(128, round(gigabits * 500))}kb"  # what passes in 4 ms, since the kernel looks that rarely
        for host in range(self.number):
            limit = ["root", "tbf", "rate", rate, "burst", burst, "latency", "50ms"]
            _run("tc", "qdisc", "replace", "dev", f"{NAME}{host}", *limit)
            _run("ip", "netns", "exec", f"{NAME}{host}", "tc", "qdisc", "replace", "dev", "eth0", *limit)

    def share(self, cores: float | None) -> None:
        """How much of the cores each host has; None: all."""
        quota = round(cores * PERIOD) if cores else None
        for group in self._shares:
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota or 'max'} {PERIOD}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def start(self, host: int, command: Sequence[str]) -> subprocess.Popen:
        """A process on a host, that is told and tells in lines."""
        processes = self._shares[host] / "cgroup.procs"
        return subprocess.Popen(
            ["ip", "netns", "exec", f"{NAME}{host}", *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            preexec_fn=lambda: processes.write_text(str(os.getpid())),
        )  # fmt: skip

    def sent(self) -> list[int]:
        """Bytes that came out of each host's interface so far, headers and all."""
        counters = [Path(f"/sys/class/net/{NAME}{host}/statistics/rx_bytes") for host in range(self.number)]
        return [int(counter.read_text()) for counter in counters]


@contextlib.contextmanager
def hosts(number: int) -> Iterator[Hosts]:
    """The hosts, whose own name leads to their own address; afterwards all is as it was."""
    _remove()
    try:
        _run("ip", "link", "add", NAME, "type", "bridge")
        _run("ip", "link", "set", NAME, "up")
        for host in range(number):
            name = f"{NAME}{host}"
            folder = NAMES_OF_HOSTS / name
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address(host)} {socket.gethostname()}\n")
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", name, "master", NAME, "up")
            _run("ip", "-n", name, "address", "add", f"{address(host)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", link, "up")
        yield Hosts(number)
    finally:
        _remove()


def _remove() -> None:
    for folder in NAMES_OF_HOSTS.glob(f"{NAME}[0-9]*"):
        subprocess.run(["ip", "netns", "delete", folder.name], capture_output=True)
        subprocess.run(["ip", "link", "delete", folder.name], capture_output=True)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # a process in it has not quite ended
            _group(folder.name).rmdir()
    subprocess.run(["ip", "link", "delete", NAME], capture_output=True)


def _group(name: str) -> Path:
    """A control group of processes, of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    group = (root / "cpu" if (root / "cpu").exists() else root) / name
    group.mkdir(exist_ok=True)
    return group


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
