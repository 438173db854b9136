"""The interpreter lock is released while an engine works, and many threads at once get the right results."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

import flash3


def test_sixteen_threads(qkv, engine):
    problems = [qkv(seqlen_q=8 + n, dtype=(np.float32, ml_dtypes.bfloat16)[n % 2]) for n in range(16)]
    expected = [flash3.attention(*p, causal=True, engine=engine) for p in problems]
    started = threading.Barrier(16)

    def work(n):
        started.wait()
        return [flash3.attention(*problems[n], causal=True, engine=engine) for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        for n, results in enumerate(pool.map(work, range(16))):
            for result in results:
                np.testing.assert_array_equal(result, expected[n])


def test_other_threads_run_meanwhile(qkv):
    """A thread that never gives the interpreter away by itself lets another one run while an engine works."""
    tensors = qkv(batch=2, seqlen_q=512, seqlen_kv=512, head_dim=64)
    done = threading.Event()

    def work():
        flash3.attention(*tensors, engine="reference")
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # only a released lock lets this thread go on
    try:
        thread = threading.Thread(target=work)
        thread.start()
        ticks = 0
        while not done.is_set():
            time.sleep(0.001)
            ticks += 1
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert ticks > 10
