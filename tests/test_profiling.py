"""Where time goes: operations by the parts of a step, from a program's text and its trace."""

import gzip
import json

import pytest

from hume_jax import config as config_lib
from hume_jax import pipeline, profiling
from hume_jax.profiling import Operation

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PROGRAM = """
ENTRY %main (p: f32[2]) -> f32[2] {
  %dot.1 = f32[2] dot(%a, %b), metadata={op_name="f/while/body/vmap(jvp(inner_fit))/dot_general"}
  %fusion.2 = f32[2] fusion(%a), kind=kLoop, metadata={op_name="f/vmap(transpose(inner_fit))/mul"}
  %while.3 = (f32[2]{0}) while(%t), condition=%c, body=%d, metadata={op_name="jit(f)/split/while"}
  ROOT %all-reduce.4 = f32[2]{0} all-reduce(%x), metadata={op_name="jit(f)/adjoint/labels/psum"}
  %custom.5 = (f32[8]{0}, s8[4]{0}) custom-call(%a), custom_call_target="__cublas$gemm"
  %copy.6 = f32[2]{0} copy(%a)
"""


def test_operations_of_a_program():
    assert profiling.operations([PROGRAM]) == {
        "dot.1": Operation("inner_fit", "products"),
        "fusion.2": Operation("adjoint", "rest"),
        "while.3": None,
        "all-reduce.4": Operation("labels", "exchanges"),
        "custom.5": Operation("other", "products"),
        "copy.6": Operation("other", "rest"),
    }


def test_seconds_of_the_newest_trace(tmp_path):
    def event(name: str, duration: float, **more: object) -> dict:
        return {"ph": "X", "dur": duration, "name": name, "args": {"hlo_op": name}, **more}

    def write(time: str, events: list[dict]) -> None:
        folder = tmp_path / "plugins" / "profile" / time
        folder.mkdir(parents=True)
        with gzip.open(folder / "host.trace.json.gz", "wt") as file:
            json.dump({"traceEvents": events}, file)

    write("2026_01_01", [event("dot.1", 9e9)])
    events = [event("dot.1", 3e6), event("dot.1", 1e6), event("while.3", 8e6), event("new", 5e5)]
    write("2026_01_02", [*events, {"ph": "M", "name": "dot.1"}, {"ph": "X", "dur": 1, "name": "x"}])
    found = profiling.seconds_of(tmp_path, profiling.operations([PROGRAM]))
    assert found == {Operation("inner_fit", "products"): 4.0, Operation("other", "rest"): 0.5}
    summed = profiling.summary(found, 2, 6.0)
    assert summed["seconds_per_step"] == 3
    assert summed["operations_per_step"] == 2.25
    assert summed["parts"]["inner_fit"]["products"] == 2
    head, names, *rows = profiling.lines(summed)
    assert head.startswith("2 steps of 3 s")
    assert names.split() == ["part", *profiling.KINDS, "share"]
    assert [row.split()[0] for row in rows] == [*profiling.PARTS, "other", "all"]
    assert rows[profiling.PARTS.index("inner_fit")].split()[-1] == "88.9%"


@pytest.mark.slow
def test_a_run_says_where_its_time_goes(tmp_path, caplog):
    config = config_lib.load("configs/testing.py")
    config.baselines = config.plots = False
    with caplog.at_level("INFO"):
        pipeline.run(config, tmp_path / "run", profile=True)
    summed = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    # The second block.
    assert summed["steps"] == config.log_every
    parts = summed["parts"]
    assert list(parts) == [*profiling.PARTS, "other"]
    for name in ("labels", "inner_fit", "adjoint", "held_out", "update"):
        assert parts[name]["products"] > 0, name
    assert parts["split"]["rest"] > 0
    # Most operations have a place.
    named = sum(sum(parts[name].values()) for name in profiling.PARTS)
    assert named > 0.8 * summed["operations_per_step"]
    assert "for TensorBoard or Perfetto" in caplog.text
    assert list((tmp_path / "run").glob("profile/plugins/profile/*/*.xplane.pb"))
    with caplog.at_level("WARNING"):
        pipeline.run(config, tmp_path / "run", profile=True)
    assert "nothing is profiled" in caplog.text
