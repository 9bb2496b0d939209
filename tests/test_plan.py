"""`jax-ddpm plan`: targets, the reading of compiled programs, counts, and the lines that are printed."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_ddpm import ops
from jax_ddpm.commands import plan as command
from jax_ddpm.plan import target
from jax_ddpm.plan.chips import CHIPS
from jax_ddpm.plan.hlo import ArrayType, Program, array_types
from jax_ddpm.plan.measure import Measured, Memory, bytes_in, seconds
from jax_ddpm.plan.plan import lines, time_lines
from jax_ddpm.plan.products import product_flops
from jax_ddpm.plan.programs import Lowered, check_batch
from jax_ddpm.spec.errors import UserError
from jax_ddpm.training import feed
from jax_ddpm.training.prepare import make_mesh
from tests.small import small

IMAGES = np.zeros((40, 8, 16, 1), np.uint8)


@pytest.mark.parametrize(
    ("text", "name", "topology"), [("cpu", None, (1,)), ("h100:8", "h100", (8,)), ("v5e:16x16", "v5e", (16, 16))]
)
def test_targets(text, name, topology):
    found = target.parse_target(text)
    assert (found.chip and found.chip.name, found.topology) == (name, topology)


@pytest.mark.parametrize("text", ["gpu", "cpu:2", "h100", "h100:0", "h100:9", "h100:2x2", "v5e:4", "v5p:4x4", "v5e:x"])
def test_what_is_no_target(text):
    with pytest.raises(UserError, match="expected"):
        target.parse_target(text)


@pytest.mark.parametrize(("text", "extra"), [("h100:1", "aot-gpu"), ("v5e:2x2", "aot-tpu")])
def test_a_compiler_that_is_missing_is_named(monkeypatch, text, extra):
    monkeypatch.setattr(target, "is_installed", lambda module: False)
    with pytest.raises(UserError, match=rf"not installed\.\nInstall it: pip install .*\[{extra}\]"):
        target.devices_of(target.parse_target(text))


def test_a_batch_that_the_devices_cannot_share():
    check_batch([0] * 4, 16, 2)
    with pytest.raises(UserError, match=r"batch_size = 12: expected a multiple .* accumulate 2"):
        check_batch([0] * 4, 12, 2)


@pytest.mark.parametrize("arguments", [["nope"], ["--dataset", "folder:x"], ["tiny", "--target", "gpu"]])
def test_mistakes_of_the_user(arguments):
    with pytest.raises(UserError):
        command.main(arguments, "")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("limit", [None, 0])
def test_the_inputs_are_those_of_a_run(monkeypatch, platform, limit):
    """`plan` compiles for the shapes, dtypes and shardings that training sends, of a resident data set and others."""
    if limit is not None:
        monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", limit)
    config, mesh = small(batch_size=8), make_mesh(8)
    with ops.compile_for(platform):
        batches = feed.Feed(IMAGES, config, mesh)
        planned = feed.program_inputs(config, mesh, len(IMAGES), IMAGES.shape[1:])
        sent = batches.batches(0, 1)
    assert [(x.shape, x.dtype, x.sharding) for x in planned] == [(x.shape, x.dtype, x.sharding) for x in sent]
    assert sent[0].ndim == (4 if platform == "cpu" else 2)
    rows = np.asarray(sent[0]).reshape(-1, *IMAGES.shape[1:])[np.asarray(sent[1])[0]]
    np.testing.assert_array_equal(rows, IMAGES[batches.indices(0, 1)[0]])


def test_images_are_rows_only_where_their_size_fits():
    assert feed.rows_shape((8, 16, 1)) == (8, 16, 1)
    with ops.compile_for("tpu"):
        assert feed.rows_shape((8, 16, 1)) == (128,) and feed.rows_shape((28, 28, 1)) == (28, 28, 1)


def test_the_context_chooses_the_operations():
    assert ops.platform() == jax.default_backend()
    with ops.compile_for("gpu"):
        assert ops.platform() == "gpu" and not ops.uses_cpu_routes() and not feed.on_cpu()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, "SAME", 1), (2, ((1, 1), (1, 1)), 1), (1, ((2, 1), (1, 2)), 2)]
)
def test_flops_of_a_convolution_are_those_that_xla_counts(stride, padding, dilation):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, (dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, kernel = jnp.zeros((3, 7, 8, 4)), jnp.zeros((3, 3, 4, 5))
    counted = product_flops(jax.make_jaxpr(convolve)(x, kernel).jaxpr)
    assert counted == {"float32": jax.jit(convolve).lower(x, kernel).cost_analysis()["flops"]}


def test_flops_of_products_in_tf32():
    with ops.tf32(), ops.plain():
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(ops.matmul(x, x))))(jnp.zeros((4, 4))).jaxpr
    assert product_flops(jaxpr) == {"tf32": 3 * 2 * 4**3}


def test_flops_of_products_in_loops_and_branches():
    def f(x, w):
        x = lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]
        return lax.cond(jnp.sum(x) > 0, lambda x: x, lambda x: (x @ w) @ w, x)

    counted = product_flops(jax.make_jaxpr(f)(jnp.zeros((2, 8)), jnp.zeros((8, 8))).jaxpr)
    assert counted == {"float32": (5 + 2) * 2 * 2 * 8 * 8}


TEXT = """HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, must-alias) }, num_partitions=2

%fused (p0: f32[100,8], p1: s32[4,1]) -> f32[4,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[4,1]{1,0} parameter(1)
  ROOT %g = f32[4,8]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,8}
}

%body (t: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %t = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%t), index=1
  %sum = (f32[4,8]{1,0}, bf16[3]{0}) all-reduce(%x, %b), channel_id=1, to_apply=%fused
  %fast = f32[4,8]{1,0:T(8,128)S(1)} add(%x, %x)
  ROOT %r = (s32[], f32[4,8]{1,0}) tuple(%i, %x)
}

%condition (t2: (s32[], f32[4,8])) -> pred[] {
  %t2 = (s32[], f32[4,8]{1,0}) parameter(0)
  %ten = s32[] constant(10)
  %j = s32[] get-tuple-element(%t2), index=0
  ROOT %lt = pred[] compare(%j, %ten), direction=LT
}

ENTRY %main (a: f32[100,8], k: s32[4,1], b: bf16[3]) -> f32[4,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %k = s32[4,1]{1,0} parameter(1)
  %b = bf16[3]{0} parameter(2)
  %rows = f32[4,8]{1,0} fusion(%a, %k), kind=kLoop, calls=%fused
  %w = (s32[], f32[4,8]{1,0}) while(%rows), condition=%condition, body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_program_is_read():
    program = Program(TEXT)
    assert program.num_aliased == 2
    assert [program.trip_count(loop) for loop in program.loops] == [10]
    assert program.runs["body"] == 10 and program.scheduled == {"main", "body", "condition"}
    by_name = program.by_name
    assert program.bytes_moved(by_name["rows"]) == 4 * 32 + 4 * 32 + 4 * 4  # 4 of 100 rows
    assert program.bytes_moved(by_name["fast"]) == 2 * 4 * 32  # the result stays in the chip's other memory
    assert program.bytes_moved(by_name["w"]) == 0
    assert array_types(by_name["sum"].type) == [ArrayType("f32", (4, 8)), ArrayType("bf16", (3,))]
    assert by_name["sum"].arrays[1].bytes == 6


def test_a_loop_of_an_unknown_length():
    program = Program(TEXT.replace("%ten = s32[] constant(10)", "%ten = s32[] get-tuple-element(%t2), index=0"))
    assert [program.trip_count(loop) for loop in program.loops] == [None] and program.runs["body"] == 1


MEASURED = Measured(
    memory=Memory(arguments=2_000_000, results=1_000, temporaries=5_000_000, code=3_000_000),
    flops=Counter(bfloat16=197e9),
    bytes_moved=819e6,
    kernels=7,
    collectives={"all-reduce": [ArrayType("f32", (1000,)), ArrayType("f32", (50,))]},
    estimated_seconds=2e-3,
    trip_counts=[10],
    aliased=0,
    callbacks=0,
    convolutions=Counter(),
)
V5E = target.Target("v5e:2x2", CHIPS["v5e"], (2, 2))


def test_what_bounds_a_step():
    """Times by hand: 197 GFLOP at 197 TFLOP/s, 819 MB at 819 GB/s, 1.5 times 4,200 bytes at 200 GB/s."""
    times = seconds(MEASURED, V5E.chip, 4)
    assert (times.products, times.memory) == (1e-3, 1e-3) and times.network == pytest.approx(1.5 * 4200 / 200e9)
    slow = seconds(replace(MEASURED, bytes_moved=2 * 819e6), V5E.chip, 4)
    assert slow.bound == "memory" and seconds(replace(MEASURED, bytes_moved=1), V5E.chip, 4).bound == "products"
    said = "\n".join(time_lines(MEASURED, slow, V5E.chip, 64))
    assert "bound by memory traffic: at least 2.00 ms, 32,000 images/s at most" in said
    assert "It fits" in said and "as the compiler estimates it: 2.00 ms" in said
    large = replace(MEASURED, memory=replace(MEASURED.memory, temporaries=int(2e10)))
    assert "It does not fit" in "\n".join(time_lines(large, slow, V5E.chip, 64))


def test_the_lines():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"x": jax.ShapeDtypeStruct((1000, 500), jnp.float32, sharding=sharding)}
    assert bytes_in(tree) == 2_000_000
    said = "\n".join(lines(MEASURED, Lowered(None, None, {"state": tree}, 10), V5E, 64, 4))
    assert "Memory per device: 10.0 MB of 16.00 GB" in said and "arguments    2.0 MB, state 2.0 MB" in said
    assert "all-reduce of 1,050 numbers of f32 in 2 arrays" in said
    assert "197.0 GFLOP in bfloat16; 819.0 MB read and written" in said


@pytest.mark.slow
def test_the_command_on_a_cpu(capsys):
    flags = ["--widths", "32", "--time-width", "32", "--timesteps", "4", "--num-steps", "2", "--sampler", "ddim"]
    for what in ("train", "sample"):
        command.main(["tiny", *flags, "--what", what, "--plan-images", "64"], "")
        said = capsys.readouterr().out
        assert "conv_block on cpu" in said and "Memory per device: " in said and "GFLOP in float32" in said
