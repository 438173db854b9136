#!/usr/bin/env python3
"""Copies a compile database without the commands that only nvcc understands, and prints, NUL between them, the .cpp files
below the given folders that it still has commands for.

    host_commands.py compile_commands.json filtered.json FOLDER...
"""

import json
import pathlib
import sys


def main():
    source, target, folders = sys.argv[1], sys.argv[2], [pathlib.Path(folder).resolve() for folder in sys.argv[3:]]
    kept = {}  # one command a file
    for entry in json.loads(pathlib.Path(source).read_text()):
        path = pathlib.Path(entry["file"])
        if "nvcc" not in entry["command"] and path.suffix == ".cpp" and any(path.is_relative_to(f) for f in folders):
            kept.setdefault(str(path), entry)
    pathlib.Path(target).write_text(json.dumps(list(kept.values())))
    sys.stdout.write("\0".join(sorted(kept)))


if __name__ == "__main__":
    main()
