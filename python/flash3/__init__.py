"""Exact attention, forward and backward, the way FlashAttention-3 does it.

>>> out = flash3.attention(query, key, value, causal=True)

takes NumPy arrays, PyTorch tensors, JAX arrays and anything with DLPack, and returns the caller's own kind. Importing
flash3 imports no framework; the framework that a call's tensors come from is loaded already.
"""

from flash3._attention import attention, plan
from flash3._flash3 import HardwareReport, Plan, __version__, check

__all__ = ["HardwareReport", "Plan", "__version__", "attention", "check", "plan"]
