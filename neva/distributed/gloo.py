"""One network device of gloo for all process groups of a process.

torch gives each group a device of its own, whose thread wakes a hundred times a second. Megatron makes some twenty
groups, so that processes of several layouts, or several of one host, spend more on waking than on training.
"""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

from torch._C import _distributed_c10d

_Gloo: Any = _distributed_c10d.ProcessGroupGloo  # whose options have no type

_DEVICES: dict[int, Any] = {}
"""By process, as a fork has none of the threads: the devices of its first group, those of GLOO_SOCKET_IFNAME."""

_own_devices = _Gloo.__init__


@functools.wraps(_own_devices)
def _shared_devices(
    self: Any, store: Any, rank: int, size: int, timeout: Any = datetime.timedelta(minutes=30)
) -> None:
    devices = _DEVICES.get(os.getpid())
    if devices is None or not isinstance(timeout, datetime.timedelta):
        _own_devices(self, store, rank, size, timeout)
        if hasattr(self, "options"):
            _DEVICES[os.getpid()] = self.options._devices
        return
    options = _Gloo._Options()
    options._devices, options._threads, options._timeout = devices, 2 * len(devices), timeout
    _own_devices(self, store, rank, size, options)


def share_device() -> None:
    """Has every group of gloo that is made from now on use the device of the first one."""
    _Gloo.__init__ = _shared_devices
