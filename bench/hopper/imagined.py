"""A lab without a GPU: invented figures through the same sections, to try the harness, its files and its plots."""

import random

LIBRARIES = {"flash3": 1.1, "cudnn": 0.95, "fa2": 0.5, "fa3": 1.0, "fa4": 0.98}


class ImaginedLab:
    absent = {}

    def __init__(self, builds=("flash3",), wanted=("cudnn", "fa2", "fa3", "fa4"), seed=0):
        self.random = random.Random(seed)
        self.ours = list(builds)
        self.names = self.ours + list(wanted)

    def facts(self):
        return {"gpu": "imagined", "invented": True, "versions": dict.fromkeys(self.names, "none"), "absent": {}}

    def cublas(self):
        return {"size": 8192, "flushed": 700.0, "back_to_back": 690.0, "clock_mhz": 1500, "power_w": 690}

    def rate(self, name, problem):
        peak = {64: 560, 128: 700, 256: 760}[problem.head_dim] * (0.93 if problem.causal else 1)
        seqlen = problem.tokens / len(problem.seqlens)
        half = 500 if problem.causal else 160
        share = LIBRARIES.get(name, 1.05) * self.random.uniform(0.98, 1.02)
        return peak * share * seqlen / (seqlen + half)

    def measure(self, problem, rivals=True, milliseconds=None):
        names = self.names if rivals else self.ours
        return {
            **problem.key(),
            "error": {name: 2.3e-3 for name in names},
            "flushed": {name: self.rate(name, problem) for name in names},
            "back_to_back": {name: 0.98 * self.rate(name, problem) for name in names},
            "clock_mhz": {name: 1500 for name in names},
            "power_w": {name: 690 for name in names},
        }

    def accuracy(self, problem, distribution):
        scale = {"normal": 2.3e-3, "peaky": 1.5e-3, "outlier": 3e-3}[distribution]
        errors = {name: scale * self.random.uniform(0.95, 1.05) for name in self.names}
        return {**problem.key(), "distribution": distribution, "relative": errors, "rmse": errors}

    def long(self, problem, rows=0):
        return {**problem.key(), "tflops": {name: 650.0 for name in self.ours}, "error": {n: 2e-3 for n in self.ours}}

    def host(self, problem):
        return {
            "empty_kernel_us": 2.5,
            "call_us": {name: 10.0 for name in self.names},
            "beside_the_launch_us": {name: 7.5 for name in self.names},
            "refused": {},
        }
