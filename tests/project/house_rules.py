#!/usr/bin/env python3
"""Checks the rules of the house that a compiler does not: includes point downward only, kernels hold no asm, every
file opens with a sentence that says what it owns.

    house_rules.py FOLDER
"""

import pathlib
import re
import sys

# What each room of src/ may include beside itself and the public headers. `tools` and `include` stand on those alone.
MAY_INCLUDE = {
    "core": set(),
    "machine": set(),
    "plan": {"core"},
    "hopper": {"core", "plan"},
    "emulator": {"core", "plan", "hopper"},
    "forward": {"core", "plan", "hopper"},
    "backward": {"core", "plan", "hopper"},
    "quantize": {"core", "plan", "hopper"},
    "combine": {"core", "plan", "hopper"},
    "cpu": {"core"},
    "reference": {"core"},
    "tools": set(),
    "include": set(),
}
MAY_INCLUDE["api"] = set(MAY_INCLUDE) - {"tools", "include"}

SUFFIXES = {".h", ".c", ".cc", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
ASM = re.compile(r"\b(?:asm|__asm__)\b\s*(?:volatile\b\s*|__volatile__\b\s*)?[({]")
ASM_ROOMS = {"hopper", "emulator", "machine"}  # instructions; fibers; cpuid's relatives
OPENING = re.compile(r"//|/\*")


def room_of(path):
    """Room of a source file, given relative to the top; None for those that the rules leave free (tests, benchmarks)."""
    first = path.parts[0]
    if first == "src":
        return path.parts[1] if len(path.parts) > 2 else None
    return first if first in ("include", "tools") else None


def problems_of(path, text):
    """What is wrong with one file, as (line, sentence)."""
    lines = text.splitlines()
    if not lines or not OPENING.match(lines[0]):
        yield 1, "opens without a comment that says what the file owns"
    room = room_of(path)
    if room is None:
        return
    if room not in MAY_INCLUDE:
        yield 1, f"room {room} is not in the map of tests/project/house_rules.py"
        return
    for number, line in enumerate(lines, 1):
        found = INCLUDE.match(line)
        if found and "/" in found[1]:
            other = found[1].split("/")[0]
            is_room = other in MAY_INCLUDE and room != "tools"  # a tool's own folders may have any name
            if is_room and other != room and other not in MAY_INCLUDE[room]:
                allowed = ", ".join(sorted(MAY_INCLUDE[room] | {room, "flash3"}))
                yield number, f"{room} includes {found[1]}; it may include: {allowed}"
        if ASM.search(line.split("//")[0]) and room not in ASM_ROOMS:
            yield number, "inline asm outside src/hopper"


def sources(top):
    for folder in ("include", "src", "tools", "tests", "bench", "examples", "python"):
        for path in sorted((top / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.relative_to(top)


def check(top):
    """All problems below a folder, a line each."""
    return [
        f"{path}:{number}: {sentence}"
        for path in sources(top)
        for number, sentence in problems_of(path, (top / path).read_text(encoding="utf-8"))
    ]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = check(pathlib.Path(sys.argv[1]))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
