#!/usr/bin/env python3
"""End-to-end tests of the command flash3: what it computes, what it refuses, and what it leaves behind.

The environment says where things are: FLASH3_COMMAND, FLASH3_DATA (the samples), FLASH3_FAKE_DRIVERS (CUDA for tests).
"""

import json
import math
import os
import pathlib
import pty
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

COMMAND = os.environ["FLASH3_COMMAND"]
DATA = pathlib.Path(os.environ["FLASH3_DATA"])
FAKE_DRIVERS = os.environ["FLASH3_FAKE_DRIVERS"]
SANITIZED = os.environ.get("FLASH3_SANITIZE", "") != ""  # sanitizers reserve terabytes of addresses


# --- tensors: nested data is kept flat, beside a shape


def product(shape):
    return math.prod(shape)


def to_bfloat16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def from_bfloat16(raw):
    return struct.unpack("<f", b"\0\0" + raw)[0]


ENCODE = {
    "F32": lambda v: struct.pack(f"<{len(v)}f", *v),
    "F16": lambda v: struct.pack(f"<{len(v)}e", *v),
    "F64": lambda v: struct.pack(f"<{len(v)}d", *v),
    "I32": lambda v: struct.pack(f"<{len(v)}i", *v),
    "I64": lambda v: struct.pack(f"<{len(v)}q", *v),
    "BF16": lambda v: b"".join(map(to_bfloat16, v)),
}
DECODE = {
    "F32": lambda b: struct.unpack(f"<{len(b) // 4}f", b),
    "F16": lambda b: struct.unpack(f"<{len(b) // 2}e", b),
    "F64": lambda b: struct.unpack(f"<{len(b) // 8}d", b),
    "BF16": lambda b: [from_bfloat16(b[i : i + 2]) for i in range(0, len(b), 2)],
}
NPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "I64": "<i8", "BF16": "<V2"}


class Tensor:
    def __init__(self, dtype, shape, values):
        self.dtype, self.shape, self.values = dtype, list(shape), list(values)

    @classmethod
    def random(cls, rng, dtype, *shape):
        raw = ENCODE[dtype]([rng.gauss(0, 1) for _ in range(product(shape))])
        return cls(dtype, shape, DECODE[dtype](raw))  # as the dtype holds them

    def __getitem__(self, index):
        offset = 0
        for i, extent in zip(index, self.shape):
            offset = offset * extent + (0 if extent == 1 else i)
        return self.values[offset]

    def bytes(self):
        return ENCODE[self.dtype](self.values)


def safetensors_bytes(tensors):
    header, data = {}, b""
    for name, t in tensors.items():
        raw = t.bytes()
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    return {
        name: Tensor(d["dtype"], d["shape"], DECODE[d["dtype"]](data[slice(*d["data_offsets"])]))
        for name, d in header.items()
        if name != "__metadata__"
    }


def npy_bytes(t, descr=None, fortran=False):
    header = str({"descr": descr or NPY[t.dtype], "fortran_order": fortran, "shape": tuple(t.shape)}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + t.bytes()


def read_npy(path, dtype):
    raw = path.read_bytes()
    assert raw[:8] == b"\x93NUMPY\x01\x00"
    (size,) = struct.unpack("<H", raw[8:10])
    header = eval(raw[10 : 10 + size], {"__builtins__": {}})  # pylint: disable=eval-used
    assert header["descr"] == NPY[dtype] and not header["fortran_order"]
    return Tensor(dtype, header["shape"], DECODE[dtype](raw[10 + size :]))


def attention(
    q, k, v, scale=None, causal=False, top_left=False, left=None, right=None, softcap=0, bias=None, sinks=None, used_k=None
):
    """Attention of (batch, seqlen, heads, head_dim) tensors, one number at a time: ({(b, i, h): row}, {(b, h, i): lse})."""
    batch, seqlen_q, heads, dim = q.shape
    _, seqlen_kv, heads_kv, dim_v = v.shape
    scale = dim**-0.5 if scale is None else scale
    right = 0 if causal else right
    out, lse = {}, {}
    for b in range(batch):
        length = seqlen_kv if used_k is None else used_k[b]
        for h in range(heads):
            for i in range(seqlen_q):
                at = i + (0 if top_left else length - seqlen_q)
                scores = {}
                for j in range(length):
                    if (left is not None and j < at - left) or (right is not None and j > at + right):
                        continue
                    s = scale * sum(q[b, i, h, d] * k[b, j, h * heads_kv // heads, d] for d in range(dim))
                    s = softcap * math.tanh(s / softcap) if softcap else s
                    scores[j] = s + (bias[b, h, i, j] if bias else 0)
                if not scores:
                    out[b, i, h], lse[b, h, i] = [0.0] * dim_v, -math.inf
                    continue
                total = sum(math.exp(s) for s in scores.values()) + (math.exp(sinks[(h,)]) if sinks else 0)
                out[b, i, h] = [
                    sum(math.exp(s) / total * v[b, j, h * heads_kv // heads, d] for j, s in scores.items())
                    for d in range(dim_v)
                ]
                lse[b, h, i] = math.log(total)
    return out, lse


class CommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="flash3-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def flash3(self, *arguments, code=0, env=None, **options):
        """Runs the command in the test's folder; its stdout."""
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=dict(os.environ, **(env or {})),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        self.stderr = done.stderr
        if code == 0:
            self.assertEqual(done.stderr, "")
        return done.stdout

    def json(self, *arguments, **options):
        def refuse(constant):
            self.fail(f"{constant} is not JSON")

        return json.loads(self.flash3(*arguments, "--json", **options), parse_constant=refuse)

    def write(self, name, content):
        (self.folder / name).write_bytes(content)
        return name

    def problem(self, dtype="F32", batch=2, seqlen_q=4, seqlen_kv=6, heads=4, heads_kv=2, dim=8, dim_v=4):
        rng = random.Random(1)
        return {
            "q": Tensor.random(rng, dtype, batch, seqlen_q, heads, dim),
            "k": Tensor.random(rng, dtype, batch, seqlen_kv, heads_kv, dim),
            "v": Tensor.random(rng, dtype, batch, seqlen_kv, heads_kv, dim_v),
        }

    def expect_close(self, o, lse, expected, tolerance=1e-5):
        out, expected_lse = expected
        for (b, i, h), row in out.items():
            for d, x in enumerate(row):
                self.assertAlmostEqual(o[b, i, h, d], x, delta=tolerance, msg=f"out{(b, i, h, d)}")
        for index, x in expected_lse.items():
            if math.isinf(x):
                self.assertEqual(lse[index], x, f"lse{index}")
            else:
                self.assertAlmostEqual(lse[index], x, delta=tolerance, msg=f"lse{index}")


class Attend(CommandTest):
    """Engine reference unless a test is about the default: every build has it."""

    def test_every_option_reaches_the_engine(self):
        tensors = self.problem()
        rng = random.Random(2)
        bias, sinks = Tensor.random(rng, "F32", 1, 4, 4, 6), Tensor.random(rng, "F32", 4)
        plain = self.write("plain.safetensors", safetensors_bytes(tensors))
        biased = self.write("biased.safetensors", safetensors_bytes({**tensors, "bias": bias}))
        sunk = self.write("sunk.safetensors", safetensors_bytes({**tensors, "sinks": sinks}))
        used = self.write("used.safetensors", safetensors_bytes({**tensors, "seqused_k": Tensor("I32", [2], [5, 0])}))
        cases = [
            (plain, [], {}),
            (plain, ["--scale", "0.3"], {"scale": 0.3}),
            (plain, ["--causal"], {"causal": True}),
            (plain, ["--causal", "--alignment", "top-left"], {"causal": True, "top_left": True}),
            (plain, ["--window-left", "1", "--window-right", "2"], {"left": 1, "right": 2}),
            (plain, ["--window-left", "0"], {"left": 0}),
            (plain, ["--softcap", "0.8"], {"softcap": 0.8}),
            (biased, [], {"bias": bias}),
            (sunk, ["--causal"], {"sinks": sinks, "causal": True}),
            (used, [], {"used_k": [5, 0]}),
        ]
        seen = set()
        for file, flags, options in cases:
            with self.subTest(file=file, flags=flags):
                self.flash3("attend", file, "--engine", "reference", "--out", "o.safetensors", *flags)
                result = read_safetensors(self.folder / "o.safetensors")
                self.assertEqual(result["o"].shape, [2, 4, 4, 4])
                self.assertEqual(result["lse"].shape, [2, 4, 4])
                expected = attention(tensors["q"], tensors["k"], tensors["v"], **options)
                self.expect_close(result["o"], result["lse"], expected)
                seen.add(tuple(result["o"].values))
        self.assertEqual(len(seen), len(cases), "two options give the same result")

    def test_npy_in_every_dtype(self):
        for dtype, tolerance in {"F32": 1e-5, "F16": 2e-3, "F64": 1e-12, "BF16": 2e-2}.items():
            with self.subTest(dtype=dtype):
                tensors = self.problem(dtype)
                files = [self.write(f"{name}.npy", npy_bytes(t)) for name, t in tensors.items()]
                flags = ["--dtype", "bfloat16"] if dtype == "BF16" else []
                self.flash3("attend", *files, "--engine", "reference", "-o", "o.npy", "--lse", "lse.npy", *flags)
                o = read_npy(self.folder / "o.npy", dtype)
                lse = read_npy(self.folder / "lse.npy", "F64" if dtype == "F64" else "F32")
                self.expect_close(o, lse, attention(*tensors.values()), tolerance)

    def test_tensors_by_name_and_layout(self):
        tensors = self.problem()

        def heads_first(t):
            b, s, h, d = t.shape
            values = [t[i, j, k, l] for i in range(b) for k in range(h) for j in range(s) for l in range(d)]
            return Tensor(t.dtype, [b, h, s, d], values)

        names = {f"layer.0.{n}": heads_first(t) for n, t in tensors.items()}
        file = self.write("x.safetensors", safetensors_bytes(names))
        flags = [x for n in tensors for x in (f"-{n}", f"{file}:layer.0.{n}")]
        self.flash3("attend", *flags, "--layout", "bhsd", "--engine", "reference", "-o", "o.npy", "--lse", "l.safetensors")
        o = read_npy(self.folder / "o.npy", "F32")
        self.assertEqual(o.shape, [2, 4, 4, 4])
        lse = read_safetensors(self.folder / "l.safetensors")
        self.assertEqual(list(lse), ["lse"])
        expected_out, expected_lse = attention(*tensors.values())
        moved = {(b, h, i): row for (b, i, h), row in expected_out.items()}
        for (b, h, i), row in moved.items():
            for d, x in enumerate(row):
                self.assertAlmostEqual(o[b, h, i, d], x, delta=1e-5)
        for index, x in expected_lse.items():
            self.assertAlmostEqual(lse["lse"][index], x, delta=1e-5)

    def test_variable_length_is_a_batch_of_its_sequences(self):
        tensors = self.problem(batch=1, seqlen_q=7, seqlen_kv=7)
        flat = {n: Tensor(t.dtype, t.shape[1:], t.values) for n, t in tensors.items()}
        flat["cu_seqlens"] = Tensor("I32", [4], [0, 3, 3, 7])
        file = self.write("x.safetensors", safetensors_bytes(flat))
        self.flash3("attend", file, "--causal", "--engine", "reference", "-o", "o.safetensors")
        result = read_safetensors(self.folder / "o.safetensors")
        self.assertEqual(result["lse"].shape, [4, 7])
        for begin, end in ((0, 3), (3, 7)):
            parts = []
            for t in tensors.values():
                row = product(t.shape[2:])
                parts.append(Tensor(t.dtype, [1, end - begin, *t.shape[2:]], t.values[begin * row : end * row]))
            out, lse = attention(*parts, causal=True)
            for (_, i, h), row in out.items():
                for d, x in enumerate(row):
                    self.assertAlmostEqual(result["o"][begin + i, h, d], x, delta=1e-5)
                self.assertAlmostEqual(result["lse"][h, begin + i], lse[0, h, i], delta=1e-5)

    def test_real_samples_pass_verification(self):
        for sample in sorted(DATA.glob("*.safetensors")):
            for flags in ([], ["--causal"], ["--window-left", "20", "--softcap", "30"]):
                with self.subTest(sample=sample.name, flags=flags):
                    text = self.flash3("attend", sample, "--engine", "reference", "--verify", *flags)
                    self.assertIn("✓ within twice the error", text)
                    for word in ("problem", "engine", "because", "time", "naive float16"):
                        self.assertIn(word, text)
        self.assertGreaterEqual(len(list(DATA.glob("*.safetensors"))), 2)

    def test_verification_as_json(self):
        report = self.json("attend", DATA / "minilm-layer0.safetensors", "--engine", "reference", "--verify")
        self.assertTrue(report["verify"]["passed"])
        self.assertEqual(report["plan"]["engine"], "reference")
        self.assertGreater(report["verify"]["naive_out"]["rmse"], report["verify"]["out"]["rmse"])
        self.assertGreater(report["flops_per_second"], 0)
        self.assertEqual(report["wrote"], [])

    def test_empty_batch(self):
        file = self.write("x.safetensors", safetensors_bytes(self.problem(batch=0)))
        self.flash3("attend", file, "--engine", "reference", "--verify", "-o", "o.npy")
        self.assertEqual(read_npy(self.folder / "o.npy", "F32").shape, [0, 4, 4, 4])

    def test_infinity_in_a_result_is_still_json(self):
        tensors = self.problem()
        tensors["q"].values[0] = math.inf
        file = self.write("x.safetensors", safetensors_bytes(tensors))
        self.json("attend", file, "--engine", "reference", "--verify")

    def test_an_old_result_is_replaced_whole(self):
        file = self.write("x.safetensors", safetensors_bytes(self.problem()))
        self.write("o.safetensors", b"old")
        self.flash3("attend", file, "--engine", "reference", "-o", "o.safetensors")
        self.assertEqual(set(read_safetensors(self.folder / "o.safetensors")), {"o", "lse"})
        self.assertEqual(sorted(os.listdir(self.folder)), ["o.safetensors", "x.safetensors"])

    def test_a_full_disk_leaves_nothing(self):
        file = self.write("x.safetensors", safetensors_bytes(self.problem(seqlen_q=64)))

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

        self.write("o.npy", b"old")
        self.flash3("attend", file, "--engine", "reference", "-o", "o.npy", code=1, preexec_fn=limit)
        self.assertIn("o.npy: cannot be written", self.stderr)
        self.assertEqual(sorted(os.listdir(self.folder)), ["o.npy", "x.safetensors"])
        self.assertEqual((self.folder / "o.npy").read_bytes(), b"old")


class BadInput(CommandTest):
    """Everything refused exits 2 with one line on stderr that names the argument or file, and writes nothing."""

    def expect_refused(self, arguments, *words):
        before = {p: p.read_bytes() for p in self.folder.iterdir() if p.is_file()}
        output = self.flash3(*arguments, code=2)
        self.assertEqual(output, "", arguments)
        self.assertEqual(self.stderr.count("\n"), 1, self.stderr)
        for word in words:
            self.assertIn(word, self.stderr, arguments)
        self.assertEqual({p: p.read_bytes() for p in self.folder.iterdir() if p.is_file()}, before, arguments)

    def attend(self, tensors, words, *flags):
        file = self.write("x.safetensors", safetensors_bytes(tensors))
        self.expect_refused(["attend", file, "--engine", "reference", "-o", "o.safetensors", *flags], *words)

    def test_tensors_that_do_not_fit_together(self):
        def changed(name, dtype=None, shape=None, values=None):
            tensors = self.problem()
            if name in tensors:
                old = tensors[name]
                dtype, shape = dtype or old.dtype, shape or old.shape
            tensors[name] = Tensor(dtype, shape, values if values is not None else [0] * product(shape))
            return tensors

        cases = [
            (changed("q", shape=[2, 4, 32]), ["query: shape is (2, 4, 32)", "rank 4"]),
            (changed("q", shape=[4]), ["query: "]),
            (changed("q", shape=[1] * 7), ["7 dimensions"]),
            (changed("k", shape=[2, 6, 2, 7]), ["key: head_dim is 7, accepted is query's 8"]),
            (changed("k", shape=[3, 6, 2, 8]), ["key: ", "batch of 3"]),
            (changed("v", shape=[2, 5, 2, 4]), ["value: shape is (2, 5, 2, 4)"]),
            (changed("v", dtype="F16"), ["value: dtype is float16, accepted is float32"]),
            (changed("k", shape=[2, 6, 3, 8]), ["key: has 3 heads, accepted is a divisor of query's 4"]),
            (changed("q", shape=[2, 4, 4, 257]), ["query: head_dim is 257, accepted is 1 to 256"]),
            (changed("q", dtype="I64"), ["tensor \"q\" has dtype I64"]),
            (changed("q", dtype="I32"), ["query: dtype is int32"]),
            (changed("sinks", "F32", [3]), ["sinks: shape is (3)"]),
            (changed("sinks", "F16", [4]), ["sinks: dtype is float16"]),
            (changed("bias", "F32", [2, 4, 4, 5]), ["bias: shape is (2, 4, 4, 5)"]),
            (changed("seqused_k", "I32", [2], [1, 7]), ["seqused_k: entry 1 is 7"]),
            (changed("seqused_q", "I32", [2], [-1, 1]), ["seqused_q: entry 0 is -1"]),
            (changed("seqused_q", "I64", [2], [1, 1]), ["seqused_q", "I64"]),
        ]
        for tensors, words in cases:
            with self.subTest(words=words):
                self.attend(tensors, words)

    def test_lengths_that_cannot_be(self):
        flat = {n: Tensor(t.dtype, [product(t.shape[:2]), *t.shape[2:]], t.values) for n, t in self.problem().items()}
        for q, k, words in [
            ([0, 5, 3], [0, 6, 12], ["cu_seqlens_q: falls from 5 to 3 at entry 2"]),
            ([0, 5, 9], [0, 6, 12], ["cu_seqlens_q: ends at 9, beyond the 8 rows of query"]),
            ([1, 5, 8], [0, 6, 12], ["cu_seqlens_q: starts at 1"]),
            ([0, 5, 8], [0, -6, 12], ["cu_seqlens_k: falls from 0 to -6"]),
            ([0, 8], [0, 6, 12], ["cu_seqlens_k: ", "batch of 2"]),
            ([], [0, 6, 12], ["cu_seqlens_q: is empty"]),
        ]:
            with self.subTest(words=words):
                lengths = {"cu_seqlens_q": Tensor("I32", [len(q)], q), "cu_seqlens_k": Tensor("I32", [len(k)], k)}
                self.attend({**flat, **lengths}, words)

    def test_options(self):
        for flags, words in [
            (["--scale", "nan"], ["softmax_scale: is nan"]),
            (["--scale", "inf"], ["softmax_scale: is inf"]),
            (["--scale", "wide"], ["--scale", "wide"]),
            (["--softcap", "-1"], ["softcap: is -1"]),
            (["--window-left", "-1"], ["window_left: is -1"]),
            (["--window-right", "1.5"], ["--window-right", "1.5"]),
            (["--alignment", "middle"], ["--alignment: is 'middle', accepted are bottom-right, top-left"]),
            (["--engine", "abacus"], ["--engine: is 'abacus'"]),
            (["--engine", "cuda"], ["engine cuda cannot run this problem"]),
            (["--threads", "-1"], ["num_threads: is -1"]),
            (["--dtype", "int8"], ["--dtype: is 'int8'"]),
            (["--layout", "sbhd"], ["--layout: is 'sbhd'"]),
            (["--no-such-flag"], ["--no-such-flag"]),
        ]:
            with self.subTest(flags=flags):
                file = self.write("x.safetensors", safetensors_bytes(self.problem()))
                engine = [] if "--engine" in flags else ["--engine", "reference"]
                self.expect_refused(["attend", file, *engine, "-o", "o.npy", *flags], *words)

    def test_files_that_lie(self):
        good = safetensors_bytes(self.problem())
        (size,) = struct.unpack("<Q", good[:8])
        header = json.loads(good[8 : 8 + size])

        def with_header(change):
            copy = json.loads(json.dumps(header))
            change(copy)
            text = json.dumps(copy).encode()
            return struct.pack("<Q", len(text)) + text + good[8 + size :]

        def set_q(**fields):
            return with_header(lambda h: h["q"].update(fields))

        cases = [
            (b"", ["has 0 bytes"]),
            (b"\0" * 7, ["has 7 bytes"]),
            (good[:-1], ["data_offsets", "the file has"]),
            (good[: size // 2], ["says that its header has"]),
            (good + b"\0", ["1 bytes at the end belong to no tensor"]),
            (struct.pack("<Q", 1 << 62) + good[8:], ["says that its header has 4611686018427387904 bytes"]),
            (struct.pack("<Q", 17 << 20) + b"{" + b" " * (17 << 20), ["header of 17825792 bytes, accepted are up to"]),
            (struct.pack("<Q", size) + b"x" * size, ["does not start with a JSON object"]),
            (struct.pack("<Q", 2) + b"{x", ["not valid JSON"]),
            (struct.pack("<Q", 100000) + b"{\"a\":" + b"[" * 99995, ["nested too deeply"]),
            (set_q(shape=[1 << 40, 1 << 40]), ["tensor \"q\"", "64 bits"]),
            (set_q(shape=[2, 4, 4, 9]), ["tensor \"q\"", "needs"]),
            (set_q(dtype="F64"), ["tensor \"q\"", "needs"]),
            (set_q(data_offsets=[0, 1 << 50]), ["tensor \"q\"", "the file has"]),
            (set_q(data_offsets=[-8, 8]), ["tensor \"q\"", "-8"]),
            (with_header(lambda h: h["k"].update(data_offsets=h["q"]["data_offsets"], shape=h["q"]["shape"])), ["overlap"]),
            (with_header(lambda h: h.pop("v")), ["belong to no tensor"]),
        ]
        for content, words in cases:
            with self.subTest(words=words):
                file = self.write("x.safetensors", content)
                self.expect_refused(["attend", file, "--engine", "reference", "-o", "o.npy"], "x.safetensors: ", *words)
                self.expect_refused(["plan", file], "x.safetensors: ", *words)

    def test_npy_files_that_lie(self):
        tensors = self.problem()
        q, k, v = tensors.values()
        self.write("k.npy", npy_bytes(k))
        self.write("v.npy", npy_bytes(v))
        good = npy_bytes(q)
        for content, words in [
            (b"", ["does not start as a .npy file does"]),
            (good[:9], ["does not start"]),
            (good[:40], ["header has"]),
            (good[:-4], ["needs 1024 bytes of data, but the file has 1020"]),
            (good + b"\0\0\0\0", ["the file has 1028"]),
            (good[:6] + b"\x07" + good[7:], ["version 7.0"]),
            (npy_bytes(q, descr=">f4"), ["big-endian"]),
            (npy_bytes(q, descr="|O8"), ["Python objects"]),
            (npy_bytes(q, descr="<V4"), ["dtype '<V4'"]),
            (npy_bytes(q, descr="<c8"), ["<c8"]),
            (npy_bytes(q, fortran=True), ["Fortran (column-major) order"]),
            (npy_bytes(Tensor("F32", [1 << 62, 4, 4, 8], q.values)), ["64 bits"]),
            (npy_bytes(Tensor("BF16", q.shape, q.values)), ["--dtype bfloat16"]),
        ]:
            with self.subTest(words=words):
                self.write("q.npy", content)
                command = ["attend", "q.npy", "k.npy", "v.npy", "--engine", "reference", "-o", "o.npy"]
                self.expect_refused(command, "q.npy: ", *words)

    def test_files_that_are_none(self):
        os.mkfifo(self.folder / "pipe.safetensors")
        (self.folder / "folder.safetensors").mkdir()
        file = self.write("x.safetensors", safetensors_bytes(self.problem()))
        attend = ["attend", "--engine", "reference"]
        for arguments, words in [
            ([*attend, "missing.safetensors"], ["missing.safetensors: cannot be opened: No such file"]),
            ([*attend, "pipe.safetensors"], ["pipe.safetensors: is not a regular file"]),
            ([*attend, "folder.safetensors"], ["folder.safetensors: is not a regular file"]),
            ([*attend, "x.pt"], ["x.pt: the name ends in '.pt', accepted are .safetensors and .npy"]),
            ([*attend, "a.npy"], ["FILE: one .npy file was given"]),
            ([*attend], ["--query: not given"]),
            ([*attend, "-q", file, "-k", file], ["--value: not given"]),
            ([*attend, "-q", f"{file}:nothing", "-k", file, "-v", file], ["no tensor \"nothing\"; it has q, k, v"]),
            ([*attend, file, "-o", file], ["--out: x.safetensors is an input"]),
            ([*attend, file, "-o", "o.npy", "--lse", "./o.npy"], ["--lse: ./o.npy is also given as --out"]),
            ([*attend, file, "-o", "o.txt"], ["--out: the name o.txt ends in '.txt'"]),
            ([*attend, file, "-o", "no/folder/o.npy"], ["--out: no/folder/o.npy: cannot be written: No such file"]),
            ([*attend, file, "-o", "o.npy", "--lse", "folder.safetensors"], ["--lse: folder.safetensors: is not a regular"]),
        ]:
            with self.subTest(words=words):
                self.expect_refused(arguments, *words)

    def test_float64_has_nothing_to_be_verified_against(self):
        self.attend(self.problem("F64"), ["--verify: query is float64"], "--verify")

    def test_usage(self):
        for arguments, words in [
            ([], ["flash3: A subcommand is required"]),
            (["fly"], ["flash3: "]),
            (["plan", "--heads-q", "3", "--heads-kv", "2"], ["key: has 2 heads"]),
            (["plan", "--head-dim", "0"], ["--head-dim: is '0', accepted are integers from 1"]),
            (["plan", "--seqlen", "1e3"], ["--seqlen: is '1e3'"]),
            (["plan", "--seqlen", "9999999999999999999"], ["--seqlen"]),
            (["plan", "--seqlen", "9007199254740992k"], ["--seqlen"]),
            (["plan", "--seqlen", "1000000000000", "--batch", "1000000000"], ["larger than any memory"]),
            (["plan", "--seqlens-q", "1,-2"], ["--seqlens-q: is '-2'"]),
            (["plan", "--seqlens-q", "2147483647,1"], ["--seqlens-q: the lengths add up"]),
            (["plan", "--seqlens-q", "1,2", "--seqlens-kv", "1"], ["cu_seqlens_k: is for a batch of 1"]),
            (["bench", "--max-seconds", "0"], ["--max-seconds: is 0"]),
            (["bench", "--max-seconds", "nan"], ["--max-seconds: is nan"]),
            (["bench", "--pass", "sideways"], ["--pass: holds 'sideways', accepted are forward, backward"]),
            (["bench", "--plot", "x.gif"], ["--plot: the name x.gif ends in '.gif', accepted are .svg and .png"]),
            (["bench", "--plot", "no/folder/x.svg"], ["--plot: no/folder/x.svg: cannot be written"]),
            (["bench", "--head-dim", "300", "--engine", "reference"], ["head_dim is 300"]),
            (["accuracy", "--dtype", "float64"], ["--dtype: holds 'float64'"]),
            (["accuracy", "--distribution", "cauchy"], ["--distribution: holds 'cauchy'"]),
            (["check", "everything"], ["everything"]),
        ]:
            with self.subTest(arguments=arguments):
                self.expect_refused(arguments, *words)


class Check(CommandTest):
    def on_fake(self, gpu):
        return {"env": {"LD_LIBRARY_PATH": FAKE_DRIVERS, "FAKE_GPU": gpu}}

    def test_cpu(self):
        report = self.json("check")
        cpu = report["cpu"]
        self.assertEqual(cpu["architecture"], os.uname().machine)
        self.assertEqual(cpu["usable_cores"], len(os.sched_getaffinity(0)))
        self.assertGreaterEqual(cpu["cores"], cpu["usable_cores"])
        self.assertGreater(cpu["memory_bytes"], 1 << 27)
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = {"AVX2": " avx2", "AVX-512": " avx512vl", "AVX512-BF16": " avx512_bf16", "AMX-BF16": " amx_bf16"}
        names |= {"NEON": " asimd", "SVE": " sve"}
        for capability in cpu["isa"]:
            if capability["name"] in names:
                self.assertEqual(capability["present"], names[capability["name"]] in flags, capability["name"])

    def test_affinity_is_respected(self):
        one = min(os.sched_getaffinity(0))
        report = self.json("check", preexec_fn=lambda: os.sched_setaffinity(0, {one}))
        self.assertEqual(report["cpu"]["usable_cores"], 1)
        if report["cpu"]["cores"] > 1:
            self.assertTrue(any("more cores" in m for m in report["missing"]))

    def test_hopper(self):
        report = self.json("check", **self.on_fake("h100"))
        self.assertEqual(report["cuda"]["driver_version"], "580.95.05")
        self.assertEqual(report["cuda"]["cuda_version"], "13.0")
        self.assertEqual(len(report["cuda"]["gpus"]), 2)
        for index, gpu in enumerate(report["cuda"]["gpus"]):
            self.assertTrue(gpu["hopper"])
            self.assertEqual(gpu["compute_capability"], "9.0")
            self.assertEqual([f["present"] for f in gpu["features"]], [True] * len(gpu["features"]))
            self.assertEqual(gpu["nvlinks"], 18)
            self.assertEqual(gpu["peers"], [{"gpu": 1 - index, "access": True, "nvlink": True}])
        text = self.flash3("check", **self.on_fake("h100"))
        for words in ("✓ wgmma", "✓ TMA", "✓ FP8 e4m3", "228 KiB", "✓ setmaxnreg", "✓ NVLink to GPU 1"):
            self.assertIn(words, text)

    def test_gpu_before_hopper(self):
        report = self.json("check", **self.on_fake("a100"))
        (gpu,) = report["cuda"]["gpus"]
        self.assertFalse(gpu["hopper"])
        self.assertEqual({f["name"]: f["present"] for f in gpu["features"]}["TMA"], False)
        self.assertTrue(any("NVIDIA A100-SXM4-80GB, compute capability 8.0" in m for m in report["missing"]))

    def test_drivers_without_gpus(self):
        for kind, words in (("none", "no CUDA-capable device"), ("broken", "unsupported display driver")):
            with self.subTest(kind=kind):
                report = self.json("check", **self.on_fake(kind))
                self.assertFalse(report["cuda"]["driver"])
                self.assertIn(words, report["cuda"]["problem"])
                self.assertEqual(report["cuda"]["gpus"], [])


class Plan(CommandTest):
    def test_says_what_and_why(self):
        text = self.flash3("plan", "--engine", "reference", "--seqlen", "2k", "--heads-q", "8", "--heads-kv", "2", "--causal")
        self.assertIn("seqlen_q 2048, seqlen_kv 2048, heads 8 on 2, head_dim 128", text)
        self.assertIn("causal", text)
        self.assertIn("asked for by name", text)

    def test_flops_are_those_of_visible_pairs(self):
        def flops(*flags):
            return self.json(
                "plan", "--engine", "reference", "--heads-q", "4", "--heads-kv", "2", "--head-dim", "64", *flags
            )["flops"]

        self.assertEqual(flops("--seqlen", "100"), 4 * 100 * 100 * 64 * 4)
        self.assertEqual(flops("--seqlen", "100", "--causal"), 4 * (100 * 101 // 2) * 64 * 4)
        self.assertEqual(flops("--seqlen", "100", "--backward"), 10 * 100 * 100 * 64 * 4)
        self.assertEqual(flops("--seqlens-q", "10,0,20"), 4 * (100 + 400) * 64 * 4)
        self.assertEqual(flops("--seqlens-q", "10,0,20", "--seqlens-kv", "5,5,1"), 4 * (50 + 20) * 64 * 4)

    def test_takes_no_memory(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

        flags = ["--engine", "reference", "--seqlen", "10000000", "--batch", "640", "--with-sinks", "--with-bias"]
        for extra in ([], ["--backward"]):
            report = self.json("plan", *flags, *extra, preexec_fn=None if SANITIZED else limit)
            self.assertGreater(report["flops"], 1e18)

    def test_from_a_file(self):
        report = self.json("plan", DATA / "minilm-layer3-varlen.safetensors", "--engine", "reference", "--backward")
        self.assertIn("batch 4", report["problem"])


class Bench(CommandTest):
    small = ["bench", "--engine", "reference", "--tokens", "128", "--hidden", "64", "--head-dim", "32,64", "--seqlen", "64,128"]

    def test_table(self):
        text = self.flash3(*self.small, "--runs", "2")
        self.assertIn("16 of 16 problems", text)
        self.assertEqual(len([line for line in text.splitlines() if "FLOP/s" in line]), 16)
        self.assertIn("threads of", text.splitlines()[0])

    def test_json(self):
        report = self.json(*self.small, "--pass", "forward", "--dtype", "float32,bfloat16", "--mask", "causal", "--runs", "3")
        self.assertEqual(len(report["points"]), 8)
        for point in report["points"]:
            self.assertEqual((point["pass"], point["mask"]), ("forward", "causal"))
            self.assertEqual(point["batch"] * point["seqlen"], 128)
            self.assertEqual(point["heads_q"] * point["head_dim"], 64)
            self.assertGreater(point["flops_per_second"], 0)
            self.assertIn(point["runs"], (1, 2, 3))
        self.assertIn("kernel", report["plan"])

    def test_time_is_limited(self):
        report = self.json("bench", "--engine", "reference", "--seqlen", "128,1k", "--tokens", "128", "--hidden", "64",
                           "--head-dim", "64", "--pass", "forward", "--max-seconds", "0.001")
        skipped = [p["seqlen"] for p in report["points"] if "skipped" in p]
        self.assertIn(1024, skipped)
        self.assertNotIn("skipped", report["points"][0])

    def test_svg(self):
        self.flash3(*self.small, "--runs", "1", "--plot", "p.svg")
        root = xml.etree.ElementTree.parse(self.folder / "p.svg").getroot()
        svg = "{http://www.w3.org/2000/svg}"
        self.assertEqual(root.tag, svg + "svg")
        text = [t.text for t in root.iter(svg + "text")]
        for words in ("head_dim 32, full", "head_dim 64, causal", "forward bfloat16", "backward bfloat16", "seqlen", "128"):
            self.assertIn(words, text)
        bars = [r for r in root.iter(svg + "rect") if r.find(svg + "title") is not None]
        self.assertEqual(len(bars), 16)
        self.assertEqual(os.listdir(self.folder), ["p.svg"])

    def test_png(self):
        arguments = [*self.small, "--runs", "1", "--plot", "p.png"]
        if shutil.which("rsvg-convert"):
            self.flash3(*arguments)
            self.assertEqual((self.folder / "p.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        else:
            self.flash3(*arguments, code=2)
        self.assertIn(os.listdir(self.folder), (["p.png"], []))

    def test_png_without_a_converter_is_refused_at_once(self):
        self.flash3(*self.small, "--plot", "p.png", code=2, env={"PATH": str(self.folder)})
        self.assertIn("--plot: PNG needs rsvg-convert", self.stderr)
        self.assertEqual(os.listdir(self.folder), [])


class Ablate(CommandTest):
    def test_says_what_it_lacks(self):
        self.flash3("ablate", code=2)
        self.assertIn("a diagnostic build", self.stderr)
        self.assertIn("FLASH3_ABLATION=ON", self.stderr)
        self.flash3("ablate", "--runs", "0", code=2)
        self.assertIn("--runs", self.stderr)


class Accuracy(CommandTest):
    small = ["accuracy", "--seqlen", "64", "--heads-q", "2", "--heads-kv", "1", "--head-dim", "32"]

    def test_table(self):
        text = self.flash3(*self.small, "--seed", "5")
        self.assertIn("seed 5", text)
        for word in ("float32", "bfloat16", "float16", "normal", "peaky", "outliers", "channel-bias", "naive", "reference"):
            self.assertIn(word, text)

    def test_errors_are_those_of_the_dtype(self):
        rows = self.json(*self.small)["rows"]
        by = {(r["dtype"], r["distribution"], r["method"]): r["out"] for r in rows}
        self.assertEqual(len({r["distribution"] for r in rows}), 4)
        for dtype, bits in (("float32", 24), ("float16", 11), ("bfloat16", 8)):
            # Rounding to nearest: a relative error of about 2^-bits / sqrt(3), and at most 2^-bits.
            relative = by[dtype, "normal", "reference"]["relative"]
            self.assertLess(relative, 2.0**-bits)
            self.assertGreater(relative, 2.0**-bits / 8)
            self.assertLess(relative, by[dtype, "normal", "naive"]["relative"])

    def test_a_seed_says_everything(self):
        def rows(seed):
            return self.json(*self.small, "--seed", seed, "--engine", "reference", "--dtype", "float16")["rows"]

        self.assertEqual(rows(1), rows(1))
        self.assertNotEqual(rows(1), rows(2))

    def test_options_and_engines(self):
        report = self.json(*self.small, "--engine", "reference", "--dtype", "float16", "--distribution", "outliers", "--causal")
        self.assertEqual([r["method"] for r in report["rows"]], ["reference", "naive"])
        self.assertIn("causal", report["problem"])


class Output(CommandTest):
    """What a terminal, a pipe and a closed pipe get."""

    plain = ["bench", "--engine", "reference", "--seqlen", "64", "--tokens", "64", "--hidden", "64", "--head-dim", "64"]

    def on_terminal(self, arguments, **env):
        """(code, stdout, stderr), each from a terminal of its own."""
        streams = [pty.openpty(), pty.openpty()]
        variables = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        process = subprocess.Popen(
            [COMMAND, *arguments],
            stdout=streams[0][1],
            stderr=streams[1][1],
            env={**variables, "TERM": "xterm", **env},
            cwd=self.folder,
        )
        for _, end in streams:
            os.close(end)
        texts = {master: b"" for master, _ in streams}
        still_open = set(texts)
        while still_open:
            for master in select.select(list(still_open), [], [], 60)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the terminal's other side is closed
                    data = b""
                texts[master] += data
                if not data:
                    still_open.discard(master)
        for master in texts:
            os.close(master)
        return process.wait(), *(text.decode() for text in texts.values())

    def test_a_terminal_gets_colours(self):
        code, out, _ = self.on_terminal(["check"])
        self.assertEqual(code, 0)
        self.assertIn("\x1b[3", out)

    def test_colours_can_be_declined(self):
        for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            with self.subTest(env=env):
                self.assertNotIn("\x1b", self.on_terminal(["check"], **env)[1])

    def test_a_terminal_gets_progress_which_is_gone_in_the_end(self):
        code, out, error = self.on_terminal(self.plain)
        self.assertEqual(code, 0)
        self.assertNotIn("\x1b", out)
        self.assertIn("░", error)
        self.assertTrue(error.endswith("\r\x1b[K"))

    def test_a_pipe_gets_neither(self):
        for arguments in (["check"], self.plain):
            self.assertNotIn("\x1b", self.flash3(*arguments))  # which also expects silence on stderr

    def test_a_full_output_is_an_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([COMMAND, "check"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("stdout", done.stderr)

    def test_help(self):
        text = self.flash3("--help")
        for command in ("check", "attend", "plan", "bench", "accuracy", "ablate"):
            self.assertIn(command, text)
            details = self.flash3(command, "--help")
            self.assertIn("Examples:", details)
            self.assertNotRegex(details, r"\.\.\. \.\.\.|\(\d+x\)")
        self.assertIn("Usage: flash3 attend [OPTIONS] [FILE...]\n", self.flash3("attend", "--help"))

    def test_version(self):
        header = pathlib.Path(__file__).parents[2] / "include" / "flash3" / "version.h"
        numbers = [line.split()[-1] for line in header.read_text(encoding="utf-8").splitlines() if "_VERSION_" in line]
        self.assertEqual(self.flash3("--version"), f"flash3 {'.'.join(numbers)}\n")


if __name__ == "__main__":
    unittest.main()
