"""What is measured: a problem, its visible pairs and floating-point operations, and the grids of problems."""

import dataclasses
import random

TOKENS = 16384  # of each problem of the grids
HIDDEN = 2048  # heads * head_dim, likewise
SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Self-attention: each sequence of queries over the keys of the same sequence."""

    dtype: str  # bf16 or fp16
    head_dim: int
    causal: bool
    seqlens: tuple  # one for each sequence of the batch
    heads: int
    heads_kv: int
    window: int | None = None  # keys that a query sees at most, itself the last of them
    varlen: bool = False  # packed as (total, heads, head_dim) with cumulative lengths

    @property
    def tokens(self):
        return sum(self.seqlens)

    @property
    def visible_pairs(self):
        """(query, key) pairs of one head that the mask lets through."""
        if self.window is not None:
            return sum(_triangle(min(s, self.window)) + max(0, s - self.window) * self.window for s in self.seqlens)
        return sum(_triangle(s) if self.causal else s * s for s in self.seqlens)

    @property
    def flops(self):
        """As papers count them: two products, 2 operations a multiply-add; causal is half of full."""
        if self.causal and self.window is None:
            return 2 * sum(s * s for s in self.seqlens) * self.heads * self.head_dim
        return 4 * self.visible_pairs * self.heads * self.head_dim

    def key(self):
        """What tells a cell of a result from the others."""
        return {
            "dtype": self.dtype,
            "head_dim": self.head_dim,
            "causal": self.causal,
            "seqlen": round(self.tokens / len(self.seqlens)),
            "batch": len(self.seqlens),
            "heads": self.heads,
            "heads_kv": self.heads_kv,
        }

    def __str__(self):
        mask = f"window {self.window}" if self.window else "causal" if self.causal else "full"
        shape = f"{self.heads}/{self.heads_kv} heads" if self.heads != self.heads_kv else f"{self.heads} heads"
        lengths = f"{len(self.seqlens)} x {round(self.tokens / len(self.seqlens))}" + (" varlen" if self.varlen else "")
        return f"{self.dtype} d{self.head_dim:<3} {mask:<11} {lengths:<16} {shape}"


def _triangle(n):
    return n * (n + 1) // 2


def grid(dtypes, dims, seqlens=SEQLENS, group=1):
    """The grid of the FlashAttention papers: 16k tokens in all, hidden size 2048; `group` query heads share a KV head."""
    for dtype in dtypes:
        for d in dims:
            for causal in (False, True):
                for seqlen in seqlens:
                    heads = HIDDEN // d
                    batch = max(1, TOKENS // seqlen)
                    yield Problem(dtype, d, causal, (seqlen,) * batch, heads, max(1, heads // group))


def zipf_lengths(count, total, seed=0):
    """`count` lengths in shuffled order, the n-th longest about 1/n of the longest, that add up to `total`."""
    weights = [1 / rank for rank in range(1, count + 1)]
    lengths = [max(1, int(total * w / sum(weights))) for w in weights]
    lengths[0] += total - sum(lengths)
    random.Random(seed).shuffle(lengths)
    return tuple(lengths)


def varlen_grid(dtypes, dims, counts=(32, 16, 8, 4)):
    """The same 16k tokens in unequal pieces."""
    for dtype in dtypes:
        for d in dims:
            for causal in (False, True):
                for count in counts:
                    heads = HIDDEN // d
                    yield Problem(dtype, d, causal, zipf_lengths(count, TOKENS), heads, heads, varlen=True)
