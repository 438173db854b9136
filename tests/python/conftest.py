"""What all tests share: random inputs, and the engine that they run on."""

import numpy as np
import pytest

import flash3


def _best_engine():
    tensor = np.zeros((1, 1, 1, 8), np.float32)
    try:
        return flash3.plan(tensor, tensor, tensor).engine
    except NotImplementedError:
        return "reference"


BEST_ENGINE = _best_engine()


def pytest_report_header():
    return f"flash3 {flash3.__version__} from {flash3.__file__}, engine {BEST_ENGINE}"


@pytest.fixture
def engine():
    """The fastest engine that this machine has; the reference where there is no other."""
    return BEST_ENGINE


@pytest.fixture
def random():
    return np.random.default_rng(20240711)


@pytest.fixture
def qkv(random):
    def make(batch=2, seqlen_q=17, seqlen_kv=23, heads_q=4, heads_kv=2, head_dim=16, head_dim_v=None, dtype=np.float32):
        def tensor(*shape):
            return random.standard_normal(shape).astype(dtype)

        return (
            tensor(batch, seqlen_q, heads_q, head_dim),
            tensor(batch, seqlen_kv, heads_kv, head_dim),
            tensor(batch, seqlen_kv, heads_kv, head_dim_v or head_dim),
        )

    return make
