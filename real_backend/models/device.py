"""The device that models run on: choose it, ask it for room, and say what it is."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from traces.errors import InputError

GIB = 2**30


def choose_device(device: str) -> str:
    """ "auto" is the first CUDA device, else the CPU; makes a CUDA device the current one.

    Raises InputError for one that is absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no CUDA device is visible; use --device cpu")
    try:
        torch.empty(1, device=device)
        if device.startswith("cuda"):
            _settle(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used: {reason}") from None
    return device


def _settle(device: str) -> None:
    """Settings that must be the same in every run on a CUDA device.

    Streams, events and graphs are made on the current device. cuDNN's attention is left out: it
    builds a plan for every shape, which a decode meets one by one.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)


def device_name(device: str) -> str:
    """The GPU's marketing name, or the processor architecture."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"


def describe_device(device: str) -> dict[str, Any]:
    """Facts of a CUDA device for a measurement, beside its name; empty elsewhere.

    cuda, cudnn: versions torch was built with. sdpa: the kernels that attention may take. driver,
    clocks_mhz: as NVML reports them (nvidia-ml-py), left out where it does not.
    """
    if not device.startswith("cuda"):
        return {}
    backends: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    kernels = {
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
        "cudnn": backends.cudnn_sdp_enabled(),
    }
    found: dict[str, Any] = {
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "sdpa": [name for name, enabled in kernels.items() if enabled],
    }
    nvml, handle = nvml_of(device)
    if nvml is not None:
        with contextlib.suppress(nvml.NVMLError):
            found["driver"] = str(nvml.nvmlSystemGetDriverVersion())
            kinds = {"sm": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
            found["clocks_mhz"] = {
                name: [
                    int(nvml.nvmlDeviceGetClockInfo(handle, kind)),
                    int(nvml.nvmlDeviceGetMaxClockInfo(handle, kind)),
                ]
                for name, kind in kinds.items()
            }
    return {"gpu": found}


def nvml_of(device: str) -> tuple[Any, Any]:
    """pynvml and the handle of this CUDA device, or nothing."""
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        # By UUID: CUDA's numbering follows CUDA_VISIBLE_DEVICES, NVML's does not.
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (pynvml.NVMLError, AttributeError):
        return None, None


def free_bytes(device: str) -> int | None:
    """Memory that can still be allocated on the device; None if it does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    if device != "cpu":
        return None
    with contextlib.suppress(OSError), Path("/proc/meminfo").open() as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def weights_bytes(folder: Path, dtype: torch.dtype | None) -> int:
    """Bytes that the safetensors files of a model folder need once loaded, by their headers alone;
    dtype None: as they are stored. 0 if there are none.
    """
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no mapping
                part = file.get_slice(key)
                size = 1
                for extent in part.get_shape():
                    size *= extent
                stored = _STORED.get(part.get_dtype(), 4)
                total += size * (stored if dtype is None else dtype.itemsize)
    return total


_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_STORED |= dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1)
