"""The page shows what there is, loads nothing, and lets no generated text act."""

import json
import re
import shutil

import numpy as np
import pytest

from eval import curves, report
from eval.completion import Completion
from eval.report import write_report
from train.config import UserError


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy that can be written to."""
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(tiny_run / name, tmp_path)
    return tmp_path


def test_samples_are_escaped_and_kept(run):
    text = '</pre><script>alert("x")</script> & \x1b[31m\n  indented'
    page = write_report(run, [Completion("<b>prompt</b>", text, "length", 7)]).read_text("utf-8")
    assert page == write_report(run, None).read_text("utf-8")
    assert "<mark>&lt;b&gt;prompt&lt;/b&gt;</mark>" in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; \\x1b[31m\n  indented" in page
    assert "<script" not in page and "\x1b" not in page
    assert "Samples" not in write_report(run, []).read_text("utf-8")


def test_nothing_is_loaded(run):
    page = write_report(run, [Completion("see http://example.org", "", "end", 0)]).read_text("utf-8")
    sources = re.findall(r'(?:src|href|url|@import)\s*[=(]\s*"?([^"\s)]*)', page)
    assert sources and all(source.startswith("data:") for source in sources)


def test_numbers_config_and_pictures(run):
    (run / "environment.json").write_text(json.dumps({"python": "3.11.7", "packages": {"jax": "0.10"}}))
    page = write_report(run, None).read_text("utf-8")
    for text in (
        "5.5000",
        "244.7",
        "7.9",
        "20 of 40 steps so far",
        "1,920",
        "data.train.0.path",
        "packages.jax",
    ):
        assert text in page
    assert page.count("<img") == 2


def test_missing_parts_are_left_out(run):
    (run / "metrics.jsonl").unlink()
    page = write_report(run, None).read_text("utf-8")
    assert "0 of 40 steps so far" in page
    assert "<img" not in page
    (run / "metrics.jsonl").write_text(json.dumps({"step": 40, "validation": {"loss": float("nan")}}))
    page = write_report(run, None).read_text("utf-8")
    assert "finished" in page and page.count("<img") == 1
    with pytest.raises(UserError, match="not a run directory"):
        write_report(run / "nowhere", None)


def test_command(run, capsys):
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report" / "index.html")


def test_smoothing_keeps_constants_and_does_not_lag():
    np.testing.assert_allclose(curves.smooth(np.full(50, 3.0), 7), 3.0)
    line = np.arange(50.0)
    np.testing.assert_allclose(curves.smooth(line, 7)[3:-3], line[3:-3])
