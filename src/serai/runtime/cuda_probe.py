"""Asks the CUDA driver for its devices and prints them as JSON: a program of its own, see `hardware.find_cards`.

Source: the CUDA driver API, `cuInit`, `cuDeviceGetCount`, `cuDeviceGetName`, `cuDeviceTotalMem_v2`. No
context is made, so no card's memory is used.
"""

import ctypes
import json
import sys


def cards() -> list[dict[str, object]]:
    """Return index, name and bytes of each device. Raises OSError where the driver is missing or refuses."""
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    _check(cuda.cuInit(0))
    _check(cuda.cuDeviceGetCount(ctypes.byref(count)))
    found: list[dict[str, object]] = []
    for index in range(count.value):
        device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        _check(cuda.cuDeviceGet(ctypes.byref(device), index))
        _check(cuda.cuDeviceGetName(name, len(name), device))
        _check(cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device))
        found.append({"index": index, "name": name.value.decode("utf-8", "replace"), "bytes": size.value})
    return found


def _check(status: int) -> None:
    if status:
        raise OSError(f"CUDA error {status}")


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(cards()))
    except OSError:
        sys.stdout.write("[]")
