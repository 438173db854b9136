"""The current CUDA stream of frameworks whose tensors do not tell it to C (DLPack's exchange API)."""

from __future__ import annotations


def current_stream(tensor, device_index: int) -> int:
    """The cudaStream_t as an integer. 0, the default stream, where the tensor's framework is not known."""
    for base in type(tensor).__mro__:
        package = base.__module__.partition(".")[0]
        if package == "torch":
            import torch

            return torch.cuda.current_stream(device_index).cuda_stream
        if package == "cupy":
            import cupy

            return cupy.cuda.get_current_stream(device_index).ptr
    return 0
