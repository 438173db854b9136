"""The hardware check as data."""

import os

import flash3


def test_check():
    report = flash3.check()
    assert 1 <= report.cpu["usable_cores"] == len(os.sched_getaffinity(0)) <= report.cpu["cores"]
    assert report.cpu["architecture"] == os.uname().machine and report.cpu["memory_bytes"] > 0
    assert all(c["name"] and isinstance(c["present"], bool) for c in report.cpu["isa"])
    assert all(c["bytes"] > 0 and c["level"] >= 1 for c in report.cpu["caches"])
    assert report.cuda["driver"] or report.cuda["problem"]
    assert all(g["name"] for g in report.cuda["gpus"])
    assert report.cpu["brand"] in str(report)
    assert isinstance(report.plan, flash3.Plan) and isinstance(report.missing, list)
