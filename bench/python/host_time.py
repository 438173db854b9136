#!/usr/bin/env python3
"""What a call costs on the host: from PyTorch CUDA tensors (the kernels only queued), beside PyTorch's own attention in the
same run, and from NumPy arrays on the CPU engine, beside the C++ call.

    bench/python/host_time.py [--json FILE]
"""

import argparse
import json
import statistics
import sys
import time


def microseconds(call, pause, repeats=60, calls=50):
    """Median of the mean over `calls` calls; `pause` runs between the repeats, so that a GPU's queue never fills."""
    for _ in range(calls):
        call()
    times = []
    for _ in range(repeats):
        pause()
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        times.append((time.perf_counter_ns() - start) / calls / 1e3)
    return statistics.median(times)


def interleaved(calls, pause, rounds=5):
    """{name: microseconds}: every call in each round, so that none has the machine to itself."""
    seen = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seen[name].append(microseconds(call, pause))
    return {name: round(statistics.median(times), 2) for name, times in seen.items()}


def torch_cuda(shape):
    import torch

    import flash3
    from flash3 import _flash3
    from flash3.flash_attn_interface import flash_attn_func

    query, key, value = (torch.randn(shape, device="cuda").to(torch.bfloat16) for _ in range(3))
    heads_first = [t.transpose(1, 2) for t in (query, key, value)]
    out = torch.empty_like(query)
    inputs = (query, key, value, *[None] * 6)
    options = (None, False, "bottom_right", None, None, 0.0, None, None, "automatic", 0)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls = {
        "flash3.attention": lambda: flash3.attention(query, key, value),
        "flash3.flash_attn_interface.flash_attn_func": lambda: flash_attn_func(query, key, value),
        "of that, the extension": lambda: _flash3.forward(inputs, out, None, options),
        "of that, torch.empty_like": lambda: torch.empty_like(query),
        "torch scaled_dot_product_attention": lambda: sdpa(*heads_first),
    }
    for name in ("flash_attn_interface", "flash_attn"):  # a published wrapper, where one is installed
        try:
            published = __import__(name).flash_attn_func
        except (ImportError, AttributeError):
            continue
        calls[f"{name}.flash_attn_func"] = lambda published=published: published(query, key, value)
    backends = torch.nn.attention.SDPBackend
    with torch.no_grad():
        result = interleaved(calls, torch.cuda.synchronize)
        cpp = [(_flash3.time_forward(inputs, out, options, 50), torch.cuda.synchronize())[0] for _ in range(60)]
        result["of that, the C++ call"] = round(statistics.median(cpp), 2)
        for backend in (backends.FLASH_ATTENTION, backends.CUDNN_ATTENTION):
            with torch.nn.attention.sdpa_kernel(backend):
                name = f"torch scaled_dot_product_attention, {backend.name}"
                result.update(interleaved({name: lambda: sdpa(*heads_first)}, torch.cuda.synchronize))
    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "microseconds": result}


def numpy_cpu(shape):
    import numpy as np

    import flash3
    from flash3 import _flash3

    query = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    out = np.empty_like(query)
    inputs = (query, query, query, *[None] * 6)
    options = (None, False, "bottom_right", None, None, 0.0, None, None, "cpu", 1)
    calls = {
        "flash3.attention": lambda: flash3.attention(query, query, query, engine="cpu", num_threads=1),
        "the extension": lambda: _flash3.forward(inputs, out, None, options),
    }
    result = interleaved(calls, lambda: None)
    result["the C++ call"] = round(
        statistics.median(_flash3.time_forward(inputs, out, options, 50) for _ in range(60)), 2
    )
    return {"microseconds": result}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures here too")
    arguments = parser.parse_args()
    result = {"numpy, CPU engine, one thread, (1, 1, 1, 8)": numpy_cpu((1, 1, 1, 8))}
    try:
        import torch

        if torch.cuda.is_available():
            result["torch, CUDA, bfloat16, (1, 128, 8, 64)"] = torch_cuda((1, 128, 8, 64))
        else:
            print("PyTorch sees no GPU: its calls are left out", file=sys.stderr)
    except ImportError:
        print("PyTorch is not installed: its calls are left out", file=sys.stderr)
    for name, part in result.items():
        print(f"{name}: microseconds a call")
        for call, time_ in part["microseconds"].items():
            print(f"  {time_:8.2f}  {call}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
