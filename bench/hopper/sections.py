"""The parts of a measurement. Each takes a lab and the options and gives its part of the result, cell by cell."""

import time

from problem import HIDDEN, Problem, grid, varlen_grid, zipf_lengths
from report import ratio


class OutOfTime(Exception):
    pass


class Clock:
    """Stops a run before it outlasts its budget."""

    def __init__(self, budget=None):
        self.start, self.budget = time.monotonic(), budget

    def elapsed(self):
        return time.monotonic() - self.start

    def check(self, expected=0.0):
        if self.budget is not None and self.elapsed() + expected > self.budget:
            raise OutOfTime


def one_line(problem, cell):
    rates = "  ".join(f"{name} {rate:5.0f}" for name, rate in cell["flushed"].items())
    steady = "  ".join(f"{name} {rate:5.0f}" for name, rate in cell["back_to_back"].items())
    ratios = [ratio(cell[method]) for method in ("flushed", "back_to_back")]
    text = " ".join(f"{r:.2f}" for r in ratios if r is not None)
    error = cell["error"].get("flash3")
    return f"{problem}  {rates} | {steady}  ratio {text}  error {error:.1e}"


def cells_of(problems, lab, clock, cells):
    for problem in problems:
        clock.check()
        cell = lab.measure(problem)
        cells.append(cell)
        print(one_line(problem, cell), flush=True)


def run_grid(lab, options, clock, cells):
    """Every data type, head dimension, mask and length, each head with its own keys."""
    cells_of(grid(options.dtypes, options.dims, options.seqlens), lab, clock, cells)


def run_gqa(lab, options, clock, cells):
    """The same with 8 query heads a KV head."""
    cells_of(grid(options.dtypes, options.dims, options.seqlens, group=8), lab, clock, cells)


def run_varlen(lab, options, clock, cells):
    """16k tokens in sequences of unequal, Zipf-like lengths."""
    cells_of(varlen_grid(options.dtypes, options.dims), lab, clock, cells)


def run_window(lab, options, clock, cells, seqlen=16384, window=1024):
    """A sliding window, against the time its visible pairs would take at the full mask's rate."""
    for dtype in options.dtypes:
        for d in options.dims:
            clock.check()
            heads = HIDDEN // d
            full = lab.measure(Problem(dtype, d, False, (seqlen,), heads, heads), rivals=False)
            problem = Problem(dtype, d, True, (seqlen,), heads, heads, window)
            cell = lab.measure(problem)
            cell["window"] = window
            cell["full_rate"] = full["flushed"]
            cell["time_over_pairs_at_full_rate"] = {
                name: full["flushed"][name] / cell["flushed"][name] for name in full["flushed"]
            }
            cells.append(cell)
            ours = cell["time_over_pairs_at_full_rate"]["flash3"]
            print(one_line(problem, cell), f" {ours:.2f} times the time of its pairs at the full rate", flush=True)


def run_long(lab, options, clock, result, million=1 << 20):
    """One sequence of a million tokens, against the rate at 16k; one of four million, against float64 on some rows."""
    heads, heads_kv = 8, 1
    clock.check(10)
    # Steadily for as long as a million tokens take to warm the GPU up: rates at the power limit are compared.
    short = lab.measure(Problem("bf16", 128, True, (16384,), heads, heads_kv), rivals=False, milliseconds=1000)
    result["16k"] = short
    result["1M"] = lab.long(Problem("bf16", 128, True, (million,), heads, heads_kv), rows=16)
    result["1M_over_16k"] = {
        name: rate / short["back_to_back"][name] for name, rate in result["1M"]["tflops"].items()
    }
    print("1M tokens:", result["1M"]["tflops"], "over the rate at 16k:", result["1M_over_16k"], flush=True)
    clock.check(20)
    result["4M"] = lab.long(Problem("bf16", 128, True, (4 * million,), 1, 1), rows=64)
    print("4M tokens:", result["4M"]["tflops"], "relative error:", result["4M"]["error"], flush=True)


def run_host(lab, options, clock, result):
    """Host time of one call on a problem so small that the GPU does not matter; equal and unequal lengths."""
    for name, problem in {
        "equal lengths": Problem("bf16", 64, False, (64,), 1, 1),
        "causal, shared heads": Problem("bf16", 128, True, (128, 128), 8, 1),
        "unequal lengths": Problem("bf16", 64, False, zipf_lengths(4, 256), 1, 1, varlen=True),
    }.items():
        clock.check()
        result[name] = lab.host(problem)
        beside = {who: round(us, 2) for who, us in result[name]["beside_the_launch_us"].items()}
        print(f"host, {name}: microseconds beside a launch ({result[name]['empty_kernel_us']:.2f}): {beside}", flush=True)


def run_accuracy(lab, options, clock, cells):
    """Error against float64 on N(0, 1), on scores 16 times as large, and on rare large outliers."""
    for dtype in options.dtypes:
        for d in options.dims:
            for causal in (False, True):
                for distribution in ("normal", "peaky", "outlier"):
                    clock.check()
                    problem = Problem(dtype, d, causal, (4096,), 4, 4)
                    cell = lab.accuracy(problem, distribution)
                    errors = cell["relative"]
                    if "fa3" in errors:
                        cell["ratio_to_fa3"] = {name: error / errors["fa3"] for name, error in errors.items()}
                    cells.append(cell)
                    text = "  ".join(f"{name} {error:.3e}" for name, error in errors.items())
                    share = f"  {cell['ratio_to_fa3']['flash3']:.2f} of fa3" if "fa3" in errors else ""
                    print(f"{problem} {distribution:<8} {text}{share}", flush=True)


# In the order in which they run when all are asked for; a list for cells, a dictionary for named figures.
SECTIONS = {
    "grid": (run_grid, list),
    "gqa": (run_gqa, list),
    "varlen": (run_varlen, list),
    "window": (run_window, list),
    "host": (run_host, dict),
    "accuracy": (run_accuracy, list),
    "long": (run_long, dict),
}
