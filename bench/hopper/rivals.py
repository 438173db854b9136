#!/usr/bin/env python3
"""flash3 beside every rival that this machine has (cuDNN and FlashAttention-2 through PyTorch, FlashAttention-3, -4) on
one GPU, in one process, in shuffled order, on random inputs.

    python3 rivals.py --library libflash3.so [--sections grid,gqa] [--fa3 libfa3.so] [--json out.json]

Rates are medians, of launches that find an empty L2 (flushed) and of launches that follow each other (back_to_back), as
TFLOP/s: 4 seqlen^2 head_dim heads batch, halved for causal. docs/benchmarks.md says the rest.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import report
from imagined import ImaginedLab
from problem import SEQLENS
from sections import SECTIONS, Clock, OutOfTime

RIVALS = ("cudnn", "fa2", "fa3", "fa4")


def words(allowed=None, kind=str):
    def parse(text):
        values = tuple(kind(word) for word in text.split(",") if word)
        for value in values:
            if allowed and value not in allowed:
                raise argparse.ArgumentTypeError(f"{value} is none of {', '.join(map(str, allowed))}")
        return values

    return parse


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--library", action="append", default=[], help="[LABEL=]libflash3.so; given again: builds beside each other")
    add("--sections", type=words(SECTIONS), default=("grid",), help=f"of {','.join(SECTIONS)}")
    add("--rivals", type=words(RIVALS), default=RIVALS, help=f"of {','.join(RIVALS)}; empty: none")
    add("--fa3", help="FlashAttention-3 as a C library; without, the module flash_attn_interface is looked for")
    add("--json", help="written after every section")
    add("--dtypes", type=words(("bf16", "fp16")), default=("bf16",))
    add("--dims", type=words((64, 128, 256), int), default=(64, 128, 256))
    add("--seqlens", type=words(None, int), default=SEQLENS)
    add("--repeats", type=int, default=9, help="flushed launches of each")
    add("--milliseconds", type=float, default=40, help="of launches back to back of each")
    add("--budget", type=float, help="seconds after which no new cell is begun")
    add("--commit", default=os.environ.get("FLASH3_COMMIT"), help="named in the result")
    add("--dry-run", action="store_true", help="no GPU, no PyTorch: invented figures through the same path")
    options = parser.parse_args(argv)
    if not options.library and not options.dry_run:
        parser.error("--library is needed, but with --dry-run")
    return options


def builds(libraries):
    """The first is flash3, the others flash3:label."""
    named = {}
    for text in libraries:
        label, _, path = text.rpartition("=")
        named["flash3" if not named else f"flash3:{label or len(named)}"] = path
    return named


def commit_of(folder):
    git = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def driver():
    """Name, driver, clock and power limits as nvidia-smi says them; nothing without it."""
    query = "name,driver_version,clocks.max.sm,power.limit,temperature.gpu"
    try:
        smi = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
        line = subprocess.run(smi, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return {}
    return dict(zip(query.split(","), line.split(", "))) if line else {}


def make_lab(options):
    named = builds(options.library or ["imagined"])
    if options.dry_run:
        return ImaginedLab(named, options.rivals)
    from lab import Lab

    return Lab(named, options.rivals, options.fa3, options.repeats, options.milliseconds)


def save(result, path):
    if path:
        half = pathlib.Path(f"{path}.half")
        half.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        half.replace(path)


def main(argv=None):
    options = arguments(argv)
    clock = Clock(options.budget)
    lab = make_lab(options)
    result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": options.commit or commit_of(pathlib.Path(__file__).parent),
        "driver": driver(),
        **lab.facts(),
        "settings": {"repeats": options.repeats, "milliseconds": options.milliseconds},
        "seconds": {},
        "cut_short": [],
        "sections": {},
    }
    print(f"{result['gpu']}; {result['versions']}; absent: {result['absent']}", flush=True)
    result["cublas"] = lab.cublas()
    print(f"cuBLAS bf16 8192^3: {result['cublas']['flushed']:.0f} TFLOP/s", flush=True)
    for name in options.sections:
        run, kind = SECTIONS[name]
        part = result["sections"].setdefault(name, kind())
        begin = clock.elapsed()
        try:
            run(lab, options, clock, part)
        except OutOfTime:
            result["cut_short"].append(name)
            print(f"{name}: cut short, {options.budget:.0f} s are over", flush=True)
        except Exception as error:  # what has been measured is worth keeping
            result.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        result["seconds"][name] = clock.elapsed() - begin
        save(result, options.json)
    report.print_summary(result)
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
