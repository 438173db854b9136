"""Who is measured: flash3 through its C interface, and every rival that this machine has.

A library's `call(inputs)` prepares a call and gives it back as a function of no arguments that returns the output; it
raises where the library cannot do the problem. Outputs are allocated beforehand where the library allows it.
"""

import ctypes as c
import dataclasses
import importlib
import math
import os

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclasses.dataclass
class Inputs:
    """Query, key and value: (batch, seqlen, heads, head_dim), or (total, heads, head_dim) with cumulative lengths."""

    problem: object
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cu_seqlens: torch.Tensor | None = None  # int32, on the GPU

    @property
    def max_seqlen(self):
        return max(self.problem.seqlens)

    @property
    def scale(self):
        return 1 / math.sqrt(self.problem.head_dim)


class Tensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("dtype", c.c_int32),
        ("device_type", c.c_int32),
        ("device_index", c.c_int32),
        ("rank", c.c_int32),
        ("shape", c.c_int64 * 6),
        ("strides", c.c_int64 * 6),
    ]


class Options(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("softmax_scale", c.POINTER(c.c_double)),
        ("window_left", c.POINTER(c.c_int64)),
        ("window_right", c.POINTER(c.c_int64)),
        ("softcap", c.c_double),
        ("causal", c.c_int32),
        ("alignment", c.c_int32),
    ]


class Execution(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("engine", c.c_int32),
        ("num_threads", c.c_int32),
        ("stream", c.c_void_p),
    ]


class ForwardArgs(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        *(
            (name, c.POINTER(Tensor))
            for name in ("query", "key", "value", "out", "lse", "cu_seqlens_q", "cu_seqlens_k")
            + ("seqused_q", "seqused_k", "sinks", "bias")
        ),
        ("options", c.POINTER(Options)),
        ("max_seqlen_q", c.POINTER(c.c_int64)),
        ("max_seqlen_k", c.POINTER(c.c_int64)),
    ]


DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int32: 5}


class Flash3:
    def __init__(self, path, name="flash3"):
        self.name = name
        self.library = c.CDLL(os.path.abspath(path))
        self.library.flash3_last_error.restype = c.c_char_p
        self.library.flash3_version.restype = c.c_char_p
        self.version = self.library.flash3_version().decode()

    def call(self, inputs):
        problem, keep = inputs.problem, []

        def view(t):
            x = Tensor(t.data_ptr(), DTYPES[t.dtype], int(t.is_cuda), t.device.index or 0, t.dim())
            for i in range(t.dim()):
                x.shape[i], x.strides[i] = t.shape[i], t.stride(i)
            keep.extend([x, t])
            return c.pointer(x)

        out = torch.full_like(inputs.query, float("nan"))
        args = ForwardArgs(struct_size=c.sizeof(ForwardArgs))
        args.query, args.key, args.value, args.out = map(view, (inputs.query, inputs.key, inputs.value, out))
        if inputs.cu_seqlens is not None:
            args.cu_seqlens_q = args.cu_seqlens_k = view(inputs.cu_seqlens)
            args.max_seqlen_q = args.max_seqlen_k = c.pointer(c.c_int64(inputs.max_seqlen))
        options = Options(struct_size=c.sizeof(Options), causal=int(problem.causal))
        if problem.window is not None:
            options.window_left = c.pointer(c.c_int64(problem.window - 1))
        args.options = c.pointer(options)
        stream = torch.cuda.current_stream().cuda_stream if inputs.query.is_cuda else None
        execution = Execution(c.sizeof(Execution), 1 if inputs.query.is_cuda else 2, 0, stream)
        keep += [options, args, execution]
        forward, args, execution = self.library.flash3_forward, c.byref(args), c.byref(execution)

        def run():
            if forward(args, execution):
                raise RuntimeError(self.library.flash3_last_error().decode())
            return out

        run.keep = keep
        return run


class Sdpa:
    """PyTorch's scaled_dot_product_attention with one backend; for unequal lengths, the operator below it."""

    def __init__(self, name, backend):
        self.name, self.backend = name, backend
        self.version = f"torch {torch.__version__}"
        if backend == SDPBackend.CUDNN_ATTENTION:
            self.version = f"cuDNN {torch.backends.cudnn.version()}, {self.version}"

    def call(self, inputs):
        problem = inputs.problem
        if problem.window is not None or inputs.cu_seqlens is not None:
            return self.call_operator(inputs)
        q, k, v = (x.transpose(1, 2) for x in (inputs.query, inputs.key, inputs.value))
        shared = problem.heads != problem.heads_kv

        def run():
            with sdpa_kernel(self.backend):
                out = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=problem.causal, enable_gqa=shared
                )
            return out.transpose(1, 2)

        return run

    def call_operator(self, inputs):
        problem, q, k, v = inputs.problem, inputs.query, inputs.key, inputs.value
        cu, longest = inputs.cu_seqlens, inputs.max_seqlen
        if problem.heads != problem.heads_kv:
            raise NotImplementedError("shared KV heads through the operator")
        if self.backend == SDPBackend.FLASH_ATTENTION:
            window = {} if problem.window is None else {"window_size_left": problem.window - 1, "window_size_right": 0}
            operator = torch.ops.aten._flash_attention_forward
            return lambda: operator(
                q, k, v, cu, cu, longest, longest, 0.0, problem.causal, False, scale=inputs.scale, **window
            )[0]
        if problem.window is not None:
            raise NotImplementedError("a window through PyTorch's cuDNN attention")
        operator = torch.ops.aten._cudnn_attention_forward
        return lambda: operator(
            q, k, v, None, cu, cu, longest, longest, False, 0.0, problem.causal, False, scale=inputs.scale
        )[0]


class Fa3Library:
    """FlashAttention-3's forward in a shared library without PyTorch, made outside this project, that exports:

        int64_t fa3_workspace_bytes(int batch);
        int fa3_forward(
            void* q, void* k, void* v, void* o, float* lse,
            int64_t q_batch, int64_t q_row, int64_t q_head,  // strides in elements; then those of k, of v and of o
            int batch, int seqlen_q, int seqlen_k, int total_q, int total_k, int heads, int heads_kv, int head_dim,
            int is_bf16, int causal, float softmax_scale,
            int* cu_seqlens_q, int* cu_seqlens_k,  // null where all lengths are equal
            int* workspace, int num_sm, cudaStream_t stream);  // 0: launched
    """

    name = "fa3"

    def __init__(self, path):
        self.version = "hopper/, as a C library"
        library = c.CDLL(os.path.abspath(path))
        self.forward = library.fa3_forward
        self.forward.argtypes = [c.c_void_p] * 5 + [c.c_int64] * 12 + [c.c_int] * 10 + [c.c_float]
        self.forward.argtypes += [c.c_void_p] * 3 + [c.c_int, c.c_void_p]
        self.workspace_bytes = library.fa3_workspace_bytes
        self.workspace_bytes.argtypes, self.workspace_bytes.restype = [c.c_int], c.c_int64

    def call(self, inputs):
        problem, q, k, v = inputs.problem, inputs.query, inputs.key, inputs.value
        if problem.window is not None:
            raise NotImplementedError("a window in this build of FA3")
        out = torch.full_like(q, float("nan"))
        batch, total, longest = len(problem.seqlens), problem.tokens, inputs.max_seqlen
        lse = torch.empty(problem.heads * total, dtype=torch.float32, device=q.device)
        workspace = torch.zeros(self.workspace_bytes(batch), dtype=torch.uint8, device=q.device)
        strides = []
        for x in (q, k, v, out):
            strides += [x.stride(0) if x.dim() == 4 else 0, x.stride(-3), x.stride(-2)]
        cu = None if inputs.cu_seqlens is None else inputs.cu_seqlens.data_ptr()
        arguments = [x.data_ptr() for x in (q, k, v, out, lse)] + strides
        arguments += [batch, longest, longest, total, total, problem.heads, problem.heads_kv, problem.head_dim]
        arguments += [int(q.dtype == torch.bfloat16), int(problem.causal), inputs.scale, cu, cu, workspace.data_ptr()]
        arguments += [torch.cuda.get_device_properties(q.device).multi_processor_count]
        arguments += [torch.cuda.current_stream().cuda_stream]

        def run():
            status = self.forward(*arguments)
            if status:
                raise RuntimeError(f"fa3_forward returned {status}")
            return out

        run.keep = [lse, workspace, inputs]
        return run


class FlashAttnModule:
    """A Python module with flash_attn_func and flash_attn_varlen_func: FA3's and FA4's are called the same way."""

    def __init__(self, name, module):
        self.name, self.module = name, importlib.import_module(module)
        self.version = getattr(self.module, "__version__", "unknown")

    def call(self, inputs):
        problem, q, k, v = inputs.problem, inputs.query, inputs.key, inputs.value
        options = {"causal": problem.causal}
        if problem.window is not None:
            options["window_size"] = (problem.window - 1, 0)
        if inputs.cu_seqlens is None:
            function, arguments = self.module.flash_attn_func, (q, k, v)
        else:
            function, arguments = self.module.flash_attn_varlen_func, (q, k, v)
            options |= {"cu_seqlens_q": inputs.cu_seqlens, "cu_seqlens_k": inputs.cu_seqlens}
            options |= {"max_seqlen_q": inputs.max_seqlen, "max_seqlen_k": inputs.max_seqlen}

        def run():
            out = function(*arguments, **options)
            return out[0] if isinstance(out, tuple) else out

        return run


def find_rivals(wanted, fa3_path=None):
    """Those of `wanted` (cudnn, fa2, fa3, fa4) that are here, and why the others are not."""
    makers = {
        "cudnn": lambda: Sdpa("cudnn", SDPBackend.CUDNN_ATTENTION),
        "fa2": lambda: Sdpa("fa2", SDPBackend.FLASH_ATTENTION),
        "fa3": lambda: Fa3Library(fa3_path) if fa3_path else FlashAttnModule("fa3", "flash_attn_interface"),
        "fa4": lambda: FlashAttnModule("fa4", "flash_attn.cute"),
    }
    found, absent = [], {}
    for name in wanted:
        try:
            found.append(makers[name]())
        except Exception as error:  # a rival that fails to load is absent, whatever the way it fails
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found, absent
