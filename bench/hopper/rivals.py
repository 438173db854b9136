#!/usr/bin/env python3
"""flash3 beside PyTorch's attention (cuDNN, FlashAttention-2) on one GPU, in one process, in shuffled order.

    python3 rivals.py --library libflash3.so [--library name=other/libflash3.so] [--json out.json] [--repeats 9]

TFLOP/s of the forward pass: 4 seqlen^2 head_dim heads batch, halved for causal, over the median of the repeats; L2 is
flushed before each. 16k tokens in all, hidden size 2048, inputs N(0, 1).
"""

import argparse
import ctypes as c
import json
import random
import statistics
import subprocess
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int32), ("device_type", c.c_int32), ("device_index", c.c_int32),
                ("rank", c.c_int32), ("shape", c.c_int64 * 6), ("strides", c.c_int64 * 6)]


class Options(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("softmax_scale", c.c_void_p), ("window_left", c.c_void_p),
                ("window_right", c.c_void_p), ("softcap", c.c_double), ("causal", c.c_int32), ("alignment", c.c_int32)]


class Execution(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("engine", c.c_int32), ("num_threads", c.c_int32), ("stream", c.c_void_p)]


class ForwardArgs(c.Structure):
    _fields_ = [("struct_size", c.c_size_t)] + [
        (name, c.POINTER(Tensor)) for name in
        ("query", "key", "value", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "sinks",
         "bias")] + [("options", c.POINTER(Options)), ("max_seqlen_q", c.c_void_p), ("max_seqlen_k", c.c_void_p)]


DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int32: 5}


class Flash3:
    def __init__(self, path):
        self.library = c.CDLL(path)
        self.library.flash3_last_error.restype = c.c_char_p

    def call(self, q, k, v, out, causal, **more):
        """Prepares a call and returns it as a function of no arguments."""
        keep = []

        def view(t):
            x = Tensor(t.data_ptr(), DTYPES[t.dtype], 1, t.device.index or 0, t.dim())
            for i in range(t.dim()):
                x.shape[i], x.strides[i] = t.shape[i], t.stride(i)
            keep.extend([x, t])
            return c.pointer(x)

        args = ForwardArgs(struct_size=c.sizeof(ForwardArgs))
        args.query, args.key, args.value, args.out = view(q), view(k), view(v), view(out)
        for name, tensor in more.items():
            setattr(args, name, view(tensor))
        options = Options(struct_size=c.sizeof(Options), causal=int(causal))
        args.options = c.pointer(options)
        execution = Execution(c.sizeof(Execution), 1, 0, torch.cuda.current_stream().cuda_stream)
        keep.extend([options, args, execution])

        def run():
            status = self.library.flash3_forward(c.byref(args), c.byref(execution))
            if status:
                raise RuntimeError(self.library.flash3_last_error().decode())

        run.keep = keep
        return run


def sdpa(backend, q, k, v, causal):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))

    def run():
        with sdpa_kernel(backend):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return run


def time_all(candidates, repeats, flush):
    """Median milliseconds of each, in shuffled order round by round."""
    times = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    torch.cuda.synchronize()
    for _ in range(repeats):
        order = list(candidates)
        random.shuffle(order)
        for name in order:
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            candidates[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(t) for name, t in times.items()}


def back_to_back(candidates, milliseconds):
    """Milliseconds a call when the GPU never rests: the power limit shows."""
    result = {}
    for name, run in candidates.items():
        run()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        count = max(5, int(milliseconds / max(start.elapsed_time(end), 0.01)))
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        result[name] = start.elapsed_time(end) / count
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True, action="append", help="more than one: builds beside each other")
    parser.add_argument("--json")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--milliseconds", type=float, default=30)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--dtypes", default="bf16")
    parser.add_argument("--dims", default="64,128,256")
    parser.add_argument("--seqlens", default="512,1024,2048,4096,8192,16384")
    options = parser.parse_args()
    builds = {}
    for text in options.library:
        name, _, path = text.rpartition("=")
        builds[name or "flash3"] = Flash3(path)
    torch.manual_seed(0)
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    cells = []
    for dtype_name in options.dtypes.split(","):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype_name]
        for d in map(int, options.dims.split(",")):
            for causal in (False, True):
                for seqlen in map(int, options.seqlens.split(",")):
                    batch, heads = max(1, 16384 // seqlen), 2048 // d
                    q, k, v = (torch.randn(batch, seqlen, heads, d, dtype=dtype, device="cuda") for _ in range(3))
                    out = torch.full_like(q, float("nan"))
                    candidates = {name: build.call(q, k, v, out, causal) for name, build in builds.items()}
                    if not options.no_rivals:
                        candidates["cudnn"] = sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, causal)
                        candidates["fa2"] = sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, causal)
                    candidates["flash3"]()
                    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                        want = torch.nn.functional.scaled_dot_product_attention(
                            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal).transpose(1, 2)
                    error = (out.float() - want.float()).norm() / want.float().norm()
                    flops = 4 * seqlen * seqlen * d * heads * batch * (0.5 if causal else 1)
                    rate = {n: flops / ms / 1e9 for n, ms in time_all(candidates, options.repeats, flush).items()}
                    steady = {n: flops / ms / 1e9 for n, ms in back_to_back(candidates, options.milliseconds).items()}
                    cells.append({"dtype": dtype_name, "head_dim": d, "causal": causal, "seqlen": seqlen,
                                  "difference": error.item(), "flushed": rate, "back_to_back": steady})
                    text = "  ".join(f"{n} {r:5.0f}" for n, r in rate.items())
                    text += "  | " + "  ".join(f"{n} {r:5.0f}" for n, r in steady.items())
                    best = max((r for n, r in rate.items() if n not in builds), default=rate["flash3"])
                    print(f"{dtype_name} d{d:<3} {'causal' if causal else 'full  '} {seqlen:>5}  {text}"
                          f"  ratio {rate['flash3'] / best:.2f}  diff {error.item():.1e}", flush=True)
    if options.json:
        smi = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
                              "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
        with open(options.json, "w") as file:
            json.dump({"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "gpu": smi,
                       "torch": torch.__version__, "cuda": torch.version.cuda,
                       "cudnn": torch.backends.cudnn.version(), "cells": cells}, file, indent=1)


if __name__ == "__main__":
    main()
