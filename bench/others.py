"""How much of the processors other programs had: short probes of the peak fit between their turns and miss them."""

import os
import pathlib


def busy_seconds():
    """Of all processors, all programs and the hypervisor's other guests; None where the system does not tell."""
    try:
        first = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, first.split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


class Watch:
    """From its making on."""

    def __init__(self):
        self.start = busy_seconds(), os.times()

    def share(self):
        """Of the processors' time, what neither this program nor those that it has run used."""
        busy, times = busy_seconds(), os.times()
        if busy is None:
            return None
        ours = sum(times[:4]) - sum(self.start[1][:4])
        wall = times.elapsed - self.start[1].elapsed
        return max(0.0, (busy - self.start[0] - ours) / (wall * os.cpu_count())) if wall > 0 else 0.0
