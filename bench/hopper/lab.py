"""The GPU's side of a measurement: inputs, times in shuffled order, errors against float64, host time of a call."""

import ctypes as c
import functools
import math
import random
import statistics
import time

import torch

import nvml
from libraries import Flash3, Inputs, find_rivals
from reference import reference_rows, relative_error

DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_CALLS = 300  # queued at a time: the queue holds about 1,000 launches, and a call may be several


class Lab:
    def __init__(self, builds, wanted, fa3=None, repeats=9, milliseconds=40.0, seed=0):
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        self.ours = [Flash3(path, name) for name, path in builds.items()]
        self.rivals, self.absent = find_rivals(wanted, fa3)
        self.repeats, self.milliseconds = repeats, milliseconds
        self.flush = torch.empty(128 << 20, dtype=torch.uint8, device=DEVICE)
        properties = torch.cuda.get_device_properties(DEVICE)
        self.nvml = nvml.Nvml(f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else None)

    def facts(self):
        """What a reader of the result wants to know of the machine."""
        return {
            "gpu": torch.cuda.get_device_name(),
            "multiprocessors": torch.cuda.get_device_properties(DEVICE).multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "versions": {library.name: library.version for library in self.ours + self.rivals},
            "absent": self.absent,
        }

    # Inputs ----------------------------------------------------------------------------------------------------------

    def inputs(self, problem, distribution="normal"):
        lead = (problem.tokens,) if problem.varlen else (len(problem.seqlens), problem.seqlens[0])
        heads = (problem.heads, problem.heads_kv, problem.heads_kv)
        q, k, v = (self.draw((*lead, h, problem.head_dim), distribution) for h in heads)
        if distribution == "peaky":
            q *= 16
        q, k, v = (x.to(DTYPES[problem.dtype]) for x in (q, k, v))
        cu = None
        if problem.varlen:
            cu = torch.tensor((0, *problem.seqlens), device=DEVICE).cumsum(0).to(torch.int32)
        return Inputs(problem, q, k, v, cu)

    def draw(self, shape, distribution):
        x = torch.randn(shape, device=DEVICE)
        if distribution == "outlier":  # N(0, 1) + N(0, 100) * Bernoulli(0.001), as in the FlashAttention-3 paper
            x += torch.randn(shape, device=DEVICE) * 10 * (torch.rand(shape, device=DEVICE) < 0.001)
        return x

    def candidates(self, inputs, libraries):
        """Prepared calls by name, each of which has run once; and why the others cannot."""
        calls, refused = {}, {}
        for library in libraries:
            try:
                call = library.call(inputs)
                call()
                torch.cuda.synchronize()
                calls[library.name] = call
            except Exception as error:  # rivals raise what they like
                if library in self.ours:
                    raise
                refused[library.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return calls, refused

    # Times -----------------------------------------------------------------------------------------------------------

    def measure(self, problem, rivals=True, milliseconds=None):
        """A cell of a grid: TFLOP/s of each library both ways, its error on sampled rows, clock and power."""
        inputs = self.inputs(problem)
        calls, refused = self.candidates(inputs, self.ours + (self.rivals if rivals else []))
        cell = {**problem.key(), "error": self.sampled_errors(inputs, calls)}
        if refused:
            cell["refused"] = refused
        cell |= self.rates(calls, problem.flops, milliseconds)
        return cell

    def rates(self, calls, flops, milliseconds=None):
        host = {name: self.host_milliseconds(call) for name, call in calls.items()}
        flushed = self.flushed(calls, max(host.values()))
        steady, clock, power = self.back_to_back(calls, host, milliseconds or self.milliseconds)
        return {
            "flushed": {name: flops / ms / 1e9 for name, ms in flushed.items()},
            "back_to_back": {name: flops / ms / 1e9 for name, ms in steady.items()},
            "clock_mhz": clock,
            "power_w": power,
        }

    def host_milliseconds(self, call):
        """How long the host takes to queue a call while the GPU is busy with something else."""
        torch.cuda.synchronize()
        self.hold(2)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        torch.cuda.synchronize()
        return statistics.median(times)

    def hold(self, milliseconds):
        """Keeps the GPU from starting what is queued next, so that no call is measured at the speed of its host."""
        torch.cuda._sleep(int(milliseconds * self.cycles_a_millisecond))

    @functools.cached_property
    def cycles_a_millisecond(self):
        start, end = event(), event()
        torch.cuda._sleep(1_000_000)
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        end.synchronize()
        return 1e7 / start.elapsed_time(end)

    def flushed(self, calls, host):
        """Median milliseconds of single calls that find nothing of theirs in L2, in shuffled order round by round."""
        times = {name: [] for name in calls}
        for _ in range(self.repeats):
            for name in self.shuffled(calls):
                start, end = event(), event()
                self.hold(2 * host)
                self.flush.zero_()
                start.record()
                calls[name]()
                end.record()
                end.synchronize()
                times[name].append(start.elapsed_time(end))
        return {name: statistics.median(t) for name, t in times.items()}

    def back_to_back(self, calls, host, milliseconds, rounds=2):
        """Milliseconds a call when the GPU never rests, so that the power limit shows; clock and power meanwhile."""
        times, clocks, powers = ({name: [] for name in calls} for _ in range(3))
        single = self.once(calls)
        for _ in range(rounds):
            for name in self.shuffled(calls):
                count = max(3, min(MOST_CALLS, math.ceil(milliseconds / rounds / single[name])))
                start, end = event(), event()
                if single[name] < 2 * host[name]:
                    self.hold(1.5 * count * host[name])
                start.record()
                for _ in range(count):
                    calls[name]()
                end.record()
                while not end.query():
                    clock, power = self.nvml.sample()
                    clocks[name].append(clock)
                    powers[name].append(power)
                    time.sleep(0.001)
                times[name].append(start.elapsed_time(end) / count)
        return tuple({name: median(values) for name, values in what.items()} for what in (times, clocks, powers))

    def once(self, calls):
        times = {}
        for name, call in calls.items():
            start, end = event(), event()
            self.hold(0.2)
            start.record()
            call()
            end.record()
            end.synchronize()
            times[name] = max(1e-3, start.elapsed_time(end))
        return times

    def shuffled(self, calls):
        names = list(calls)
        self.random.shuffle(names)
        return names

    def cublas(self, n=8192):
        """TFLOP/s of a bf16 matrix product of this size: what the tensor cores give in practice."""
        a, b = (torch.randn(n, n, device=DEVICE).to(torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        rates = self.rates({"cublas": lambda: torch.mm(a, b, out=out)}, 2 * n**3, 300)
        return {"size": n, **{what: value["cublas"] for what, value in rates.items()}}

    # Errors ----------------------------------------------------------------------------------------------------------

    def sampled_errors(self, inputs, calls, rows=16):
        """Relative error of each library against float64 on some rows of some sequences, every head."""
        total = inputs.problem.tokens
        picked = sorted({0, total - 1, *(self.random.randrange(total) for _ in range(rows - 2))})
        want = reference_rows(inputs, picked)
        errors = {}
        for name, call in calls.items():
            out = call().reshape(total, inputs.problem.heads, -1)[picked].double()
            errors[name] = relative_error(out, want)
        return errors

    def accuracy(self, problem, distribution):
        """Relative error and RMSE of each library against float64, every row."""
        inputs = self.inputs(problem, distribution)
        calls, refused = self.candidates(inputs, self.ours + self.rivals)
        want = reference_rows(inputs, range(problem.tokens))
        result = {**problem.key(), "distribution": distribution, "relative": {}, "rmse": {}}
        if refused:
            result["refused"] = refused
        for name, call in calls.items():
            out = call().reshape(want.shape).double()
            result["relative"][name] = relative_error(out, want)
            result["rmse"][name] = (out - want).square().mean().sqrt().item()
        return result

    def long(self, problem, rows=0):
        """TFLOP/s of one call of each of our builds; with `rows`, its error on so many sampled rows."""
        inputs = self.inputs(problem)
        result = {**problem.key(), "tflops": {}, "error": {}}
        for library in self.ours:
            call = library.call(inputs)
            start, end = event(), event()
            start.record()
            out = call()
            end.record()
            end.synchronize()
            result["tflops"][library.name] = problem.flops / start.elapsed_time(end) / 1e9
            if rows:
                result["error"] |= self.sampled_errors(inputs, {library.name: lambda out=out: out}, rows)
        return result

    # The host's side -------------------------------------------------------------------------------------------------

    def host(self, problem, calls=300, rounds=15):
        """Microseconds that the host spends in one call of each library, and in launching an empty kernel."""
        inputs = self.inputs(problem)
        prepared, refused = self.candidates(inputs, self.ours + self.rivals)
        prepared["empty kernel"] = empty_kernel()
        best = {name: math.inf for name in prepared}
        # A rival may take milliseconds, and plan anew in each call: 20 ms a round tell enough.
        often = {name: max(1, min(calls, int(20 / self.host_milliseconds(call)))) for name, call in prepared.items()}
        for _ in range(rounds):
            for name in self.shuffled(prepared):
                call = prepared[name]
                torch.cuda.synchronize()
                self.hold(0.5)  # the queue is not waited for, nor woken from sleep
                start = time.perf_counter()
                for _ in range(often[name]):
                    call()
                best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / often[name])
        torch.cuda.synchronize()
        launch = best.pop("empty kernel")
        return {
            "empty_kernel_us": launch,
            "call_us": best,
            "beside_the_launch_us": {name: us - launch for name, us in best.items()},
            "refused": refused,
        }


def event():
    return torch.cuda.Event(enable_timing=True)


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


EMPTY_PTX = b""".version 7.0
.target sm_80
.address_size 64
.visible .entry empty() { ret; }
\0"""


def empty_kernel():
    """A launch through ctypes, as the libraries are called, of a kernel that does nothing."""
    driver = c.CDLL("libcuda.so.1")
    module, function = c.c_void_p(), c.c_void_p()
    if driver.cuModuleLoadData(c.byref(module), EMPTY_PTX):
        raise RuntimeError("the empty kernel does not load")
    if driver.cuModuleGetFunction(c.byref(function), module, b"empty"):
        raise RuntimeError("the empty kernel is not found")
    stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
    launch, ones = driver.cuLaunchKernel, [c.c_uint(1)] * 6

    def run():
        if launch(function, *ones, 0, stream, None, None):
            raise RuntimeError("the empty kernel does not launch")

    return run
