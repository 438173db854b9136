#!/usr/bin/env python3
"""Downloads the pinned Highway (1.3.0) into a folder.

It comes out of numpy's source package, which carries it whole: Python's package index has mirrors and works behind
company proxies where GitHub often does not, and the file's SHA-256 is pinned.
"""

import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import urllib.request

CARRIER = "numpy-2.5.5.tar.gz"
CARRIER_SHA256 = "5cddc243c75114ba845f01b1f87aca1572dbf7b6c2d88636ed3e1d2bccd7f1bf"
CARRIER_FOLDER = "numpy-2.5.5/numpy/_core/src/highway"


def download(url, sha256, timeout):
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        data = reply.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{url}: SHA-256 is not the pinned one")
    return data


def package_index():
    """The index that pip is set up with."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if told:
        return told
    from pip._internal.models.index import PyPI

    return PyPI.simple_url


def carrier():
    request = urllib.request.Request(
        package_index().rstrip("/") + "/numpy/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        files = json.load(reply)["files"]
    url = next(file["url"] for file in files if file["filename"] == CARRIER)
    return download(url, CARRIER_SHA256, timeout=120)


def extract(data, prefix, target):
    """The files below `prefix` of an archive, as `target`; all or nothing."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if not member.isfile() or ".." in path.parts or not path.is_relative_to(prefix):
                continue
            destination = partial / path.relative_to(prefix)
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(archive.extractfile(member).read())
    if not (partial / "CMakeLists.txt").exists():
        raise ValueError(f"no Highway below {prefix}")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def main():
    target = pathlib.Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        extract(carrier(), CARRIER_FOLDER, target)
    except (OSError, ValueError, StopIteration) as error:
        sys.exit(f"fetch_highway: no Highway from the Python package index: {error or CARRIER + ' is not there'}")


if __name__ == "__main__":
    main()
