#!/usr/bin/env python3
"""Times flash3 on the CPU beside PyTorch's scaled_dot_product_attention: same tensors, same threads, same run, in turns.

    bench/cpu/compare_torch.py --library build/release/src/libflash3.so --json bench/results/cpu.json

Each figure is the median of several runs, the two libraries taking turns. Results are added to the JSON file, where they
replace those of the same problem, so that a long grid can be measured in pieces. --markdown prints the file as a table.
"""

import argparse
import ctypes
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time

MAX_RANK = 6
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
ENGINE_CPU = 2


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("softmax_scale", ctypes.c_void_p),
        ("window_left", ctypes.c_void_p),
        ("window_right", ctypes.c_void_p),
        ("softcap", ctypes.c_double),
        ("causal", ctypes.c_int32),
        ("alignment", ctypes.c_int32),
    ]


class Execution(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("engine", ctypes.c_int32), ("num_threads", ctypes.c_int32)]
    _fields_ += [("stream", ctypes.c_void_p)]


def arguments(*names):
    class Arguments(ctypes.Structure):
        _fields_ = [("struct_size", ctypes.c_size_t)]
        _fields_ += [(name, ctypes.POINTER(Tensor)) for name in names]
        _fields_ += [("options", ctypes.POINTER(Options))]
        _fields_ += [("max_seqlen_q", ctypes.c_void_p), ("max_seqlen_k", ctypes.c_void_p)]

    return Arguments


LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k")
ForwardArgs = arguments("query", "key", "value", "out", "lse", *LENGTHS, "sinks", "bias")
BackwardArgs = arguments(
    *("query", "key", "value", "out", "lse", "d_out", "d_lse", "d_query", "d_key", "d_value", "d_sinks", "d_bias"),
    *LENGTHS,
    *("sinks", "bias"),
)


def view(tensor):
    """flash3's view of a PyTorch tensor; (batch, heads, seqlen, head_dim) is read as (batch, seqlen, heads, head_dim)."""
    if tensor.dim() == 4:
        tensor = tensor.transpose(1, 2)
    t = Tensor(tensor.data_ptr(), DTYPES[str(tensor.dtype).removeprefix("torch.")], 0, 0, tensor.dim())
    t.shape[: tensor.dim()] = tensor.shape
    t.strides[: tensor.dim()] = tensor.stride()
    return t


class Flash3:
    def __init__(self, path, threads):
        self.library = ctypes.CDLL(str(path))
        for name in ("flash3_last_error", "flash3_version"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.execution = Execution(ctypes.sizeof(Execution), ENGINE_CPU, threads)

    def version(self):
        return self.library.flash3_version().decode()

    def call(self, function, kind, causal, **tensors):
        """A function without arguments that runs the pass."""
        options = Options(struct_size=ctypes.sizeof(Options), causal=causal)
        args = kind(struct_size=ctypes.sizeof(kind), options=ctypes.pointer(options))
        for name, tensor in tensors.items():
            setattr(args, name, ctypes.pointer(view(tensor)))

        def run():
            if getattr(self.library, function)(ctypes.byref(args), ctypes.byref(self.execution)) != 0:
                raise RuntimeError(self.library.flash3_last_error().decode())

        return run


def in_turns(functions, seconds, least):
    """Median time of each function, after one run of each for warm-up."""
    for function in functions:
        function()
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < least or time.perf_counter() < end:
        for function, list_of_times in zip(functions, times):
            start = time.perf_counter()
            function()
            list_of_times.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times], len(times[0])


def measure(torch, flash3, dtype, head_dim, seqlen, causal, tokens, seconds):
    heads = max(1, tokens // seqlen)
    shape = (1, heads, seqlen, head_dim)
    torch.manual_seed(0)
    query, key, value, d_out = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(4))
    out, d_query, d_key, d_value = (torch.empty_like(query) for _ in range(4))
    lse = torch.empty(shape[:3])
    inputs = {"query": query, "key": key, "value": value}
    attention = torch.nn.functional.scaled_dot_product_attention

    def torch_forward():
        with torch.no_grad():
            return attention(query, key, value, is_causal=causal)

    ours = flash3.call("flash3_forward", ForwardArgs, causal, out=out, lse=lse, **inputs)
    (torch_seconds, flash3_seconds), repeats = in_turns([torch_forward, ours], seconds, 3)
    error = (out.float() - torch_forward().float()).abs().max().item()
    pairs = seqlen * (seqlen + 1) / 2 if causal else seqlen * seqlen
    flops = 4.0 * pairs * head_dim * heads

    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    graph = attention(*leaves, is_causal=causal)

    def torch_backward():
        return torch.autograd.grad(graph, leaves, d_out, retain_graph=True)

    gradients = {"d_query": d_query, "d_key": d_key, "d_value": d_value}
    ours = flash3.call("flash3_backward", BackwardArgs, causal, out=out, lse=lse, d_out=d_out, **inputs, **gradients)
    (torch_backward_seconds, flash3_backward_seconds), backward_repeats = in_turns([torch_backward, ours], seconds, 3)
    for name, expected in zip(gradients, torch_backward()):
        error = max(error, (gradients[name].float() - expected.float()).abs().max().item())

    problem = {"dtype": dtype, "head_dim": head_dim, "seqlen": seqlen, "causal": causal, "heads": heads, "batch": 1}

    def gflops(factor, seconds):
        return round(factor * flops / seconds / 1e9, 1)

    return {
        **problem,
        "forward": {
            "torch_gflops": gflops(1, torch_seconds),
            "flash3_gflops": gflops(1, flash3_seconds),
            "ratio": round(torch_seconds / flash3_seconds, 2),
            "repeats": repeats,
        },
        "backward": {
            "torch_gflops": gflops(2.5, torch_backward_seconds),
            "flash3_gflops": gflops(2.5, flash3_backward_seconds),
            "ratio": round(torch_backward_seconds / flash3_backward_seconds, 2),
            "repeats": backward_repeats,
        },
        "largest_difference": error,
    }


def cpu_name():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.processor())}, {', '.join(flags)}"


def markdown(report):
    rows = ["| dtype | head_dim | seqlen | mask | forward: torch | flash3 | | backward: torch | flash3 | |"]
    rows.append("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    for r in report["results"]:
        cells = [r["dtype"], r["head_dim"], r["seqlen"], "causal" if r["causal"] else "full"]
        for direction in ("forward", "backward"):
            d = r[direction]
            cells += [f"{d['torch_gflops']:.0f}", f"{d['flash3_gflops']:.0f}", f"**{d['ratio']:.2f}×**"]
        rows.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(rows)


def problem_of(result):
    return tuple(result[name] for name in ("dtype", "head_dim", "seqlen", "causal", "heads"))


def order(result):
    return (-DTYPES[result["dtype"]] % 3, result["head_dim"], result["seqlen"], result["causal"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=pathlib.Path, default="build/release/src/libflash3.so")
    parser.add_argument("--json", type=pathlib.Path, required=True, help="file that results are added to")
    parser.add_argument("--markdown", action="store_true", help="measure nothing: print the file as a table")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--head-dim", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--seqlen", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=16384, help="heads = tokens / seqlen")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of a pass, at least")
    options = parser.parse_args()
    report = json.loads(options.json.read_text()) if options.json.exists() else {"results": []}
    if options.markdown:
        print(markdown(report))
        return 0

    # PyTorch's idle threads would spin on the cores for milliseconds into flash3's turn. Its own figures do not suffer.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    torch.set_num_threads(options.threads)
    flash3 = Flash3(options.library, options.threads)
    report.update(
        cpu=cpu_name(),
        threads=options.threads,
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        flash3=flash3.version(),
    )
    for dtype in options.dtype:
        for head_dim in options.head_dim:
            for seqlen in options.seqlen:
                for causal in (False, True):
                    r = measure(torch, flash3, dtype, head_dim, seqlen, causal, options.tokens, options.seconds)
                    print(json.dumps(r), file=sys.stderr, flush=True)
                    report["results"] = [old for old in report["results"] if problem_of(old) != problem_of(r)] + [r]
    report["results"].sort(key=order)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
