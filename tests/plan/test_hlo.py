# ruff: noqa: E501 - the lines are the compiler's
"""The parser and the counts on small modules written as TPU and CPU compilers write them."""

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.plan.hlo import arrays_of, parse, trip_count
from lclm_jax.plan.kernels import Causality
from lclm_jax.plan.program_cost import count, replica_group

LOOPS = """HloModule jit_f, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0:T(8,128)} constant({...})
  %y = f32[8,16]{1,0:T(8,128)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%i, %y)
}

%until (p.1: (s32[], f32[8,16])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %end = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %end), direction=LT
}, execution_thread="main"

%outer (q: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %q = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%q), condition=%until, body=%inner
  %z = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %r = f32[8,16]{1,0:T(8,128)} all-reduce(%z), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %j = s32[]{:T(128)} get-tuple-element(%loop), index=0
  ROOT %t.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%j, %r)
}

ENTRY %main (in: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %in = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  ROOT %top = (s32[], f32[8,16]{1,0}) while(%in), condition=%until, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_nested_loops_multiply():
    cost = count(parse(LOOPS), 4)
    assert cost.dot_flops == 3 * 5 * 2 * 8 * 16 * 16
    (reduce,) = cost.collectives
    assert (reduce.times, reduce.group, reduce.payload) == (3, (0, 1), 8 * 16 * 4)
    assert reduce.received_bytes == 3 * 2 * (1 / 2) * 512


def test_trip_counts_are_noted_or_compared_with():
    program = parse(LOOPS)
    main, outer = program.computations["main"], program.computations["outer"]
    assert trip_count(program, main, main.instructions["top"]) == 3
    assert trip_count(program, outer, outer.instructions["loop"]) == 5


def test_a_peeled_loop_begins_later():
    one = "  %one = s32[]{:T(128)} constant(1)\n  %first = s32[]{:T(128)} copy(%one)\n"
    one += "  %v = f32[8,16]{1,0:T(8,128)} get-tuple-element(%q), index=1\n"
    one += "  %state = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%first, %v)\n  %loop = "
    program = parse(LOOPS.replace("  %loop = ", one).replace("while(%q)", "while(%state)"))
    outer = program.computations["outer"]
    assert trip_count(program, outer, outer.instructions["loop"]) == 4  # 1, 2, 3, 4 of 5


def test_an_unrolled_loop_advances_by_two():
    text = LOOPS.replace("tuple(%i, %y)", "tuple(%next, %y)").replace(
        "  %w = f32[16,16]",
        "  %two = s32[]{:T(128)} constant(2)\n  %next = s32[]{:T(128)} add(%i, %two)\n  %w = f32[16,16]",
    )
    program = parse(text)
    outer = program.computations["outer"]
    assert trip_count(program, outer, outer.instructions["loop"]) == 3  # 0, 2, 4 of 5


KERNEL = """HloModule jit_g

ENTRY %main (q: bf16[8,2048,128], k: bf16[2,2048,128]) -> bf16[8,2048,128] {
  %q = bf16[8,2048,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[2,2048,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %splash_mha_fwd_segmented.3 = bf16[8,2048,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 1024}"
}}, metadata={op_name="jit(f)/jvp(decoder)/Decoder/while/attn"}, backend_config={"custom_call_config":{"body":"x"}}
}
"""


@pytest.mark.parametrize(("scopes", "share"), [((), 1.0), (("decoder",), 0.75)])
def test_a_kernel_spans_lines_and_is_counted_by_its_name(scopes, share):
    cost = count(parse(KERNEL), 1, Causality(scopes, 1024))
    assert cost.kernel_flops == 2 * 2 * 8 * 2048 * 2048 * 128 * share
    assert cost.unknown_kernels == ()
    assert cost.hbm_bytes == 2 * 8 * 2048 * 128 * 2  # k lies in a scratchpad


def test_an_unknown_kernel_is_named():
    assert count(parse(KERNEL.replace("splash_mha_fwd_segmented", "my_kernel")), 1).unknown_kernels == ("my_kernel",)


TRITON = """HloModule jit_t

ENTRY %main (b: s32[1,4,4], q: bf16[1,512,8,128], k: bf16[1,512,2,128]) -> (bf16[1,512,8,128], f32[1,8,512]) {
  %b = s32[1,4,4]{2,1,0} parameter(0)
  %q = bf16[1,512,8,128]{3,2,1,0} parameter(1)
  %k = bf16[1,512,2,128]{3,2,1,0} parameter(2)
  ROOT %pallas_call.7 = (bf16[1,512,8,128]{3,2,1,0}, f32[1,8,512]{2,1,0}) custom-call(%b, %q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/jvp(decoder)/attn/pallas_call"}, backend_config={debug = false, grid_x = 4 : i32, ir = "ML", name = "attention_forward"}
}
"""


def test_a_kernel_on_a_gpu_has_positions_before_heads():
    cost = count(parse(TRITON), 1, Causality(("decoder",), 128))
    assert cost.kernel_flops == 2 * 2 * 8 * 128 * (128 * 128 * 4 * 5 / 2)
    assert cost.unknown_kernels == ()


def test_a_kernel_of_mosaic_gpu_is_counted_by_the_name_in_its_module():
    text = TRITON.replace("__gpu$xla.gpu.triton", "mosaic_gpu_v2").replace(
        'ir = "ML", name = "attention_forward"',
        'module = "ML\\00stable_mosaic_gpu.version\\00gpu\\00attention_forward_mosaic_gpu\\00"',
    )
    cost = count(parse(text), 1, Causality(("decoder",), 128))
    assert cost.kernel_flops == 2 * 2 * 8 * 128 * (128 * 128 * 4 * 5 / 2)
    assert cost.unknown_kernels == ()


FUSIONS = """HloModule jit_h

%slice (param_0: f32[36,64,64], param_1: s32[]) -> f32[64,64] {
  %param_0 = f32[36,64,64]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64,64]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %flat = f32[64,64]{1,0} bitcast(%one)
}

%gather (p0: f32[16,64]) -> f32[64,64] {
  %p0 = f32[16,64]{1,0} parameter(0)
  ROOT %all = f32[64,64]{1,0} all-gather(%p0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (w: f32[36,64,64], i: s32[], s: f32[16,64]) -> f32[64,64] {
  %w = f32[36,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[16,64]{1,0} parameter(2)
  %layer = f32[64,64]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  %part.1 = f32[64,64]{1,0} fusion(%s), kind=kCustom, calls=%gather
  ROOT %part.2 = f32[64,64]{1,0} fusion(%s), kind=kCustom, calls=%gather
}
"""


def test_one_layer_of_a_stack_is_read_and_one_gather_in_two_fusions_is_one():
    cost = count(parse(FUSIONS), 4)
    layer, shard = 64 * 64 * 4, 16 * 64 * 4
    assert cost.hbm_bytes == 2 * layer + 4 + 2 * (shard + layer)
    assert [c.received_bytes for c in cost.collectives] == [layer * 3 / 4]


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("dim_labels=bf_io->bf", 2 * 32 * 64 * 16),
        ("window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf", 2 * 4 * 32 * 64 * 16),
    ],
    ids=["product", "batched product"],
)
def test_products_written_as_convolutions(line, flops):
    batch = "4," if "0bf" in line else ""
    text = f"""HloModule c

ENTRY %main (a: bf16[{batch}32,64], b: bf16[{batch}64,16]) -> bf16[{batch}32,16] {{
  %a = bf16[{batch}32,64]{{1,0}} parameter(0)
  %b = bf16[{batch}64,16]{{1,0}} parameter(1)
  ROOT %c = bf16[{batch}32,16]{{1,0}} convolution(%a, %b), {line}
}}
"""
    assert count(parse(text), 1).dot_flops == flops


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['replica'=1,'fsdp'=2,'tensor'=2] {'fsdp'}", (0, 2)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
        ("source_target_pairs={{0,0},{1,2},{2,1}}", (1, 2)),
        ("replica_groups={}", (0, 1, 2, 3)),
    ],
)
def test_groups_in_every_spelling(text, group):
    assert replica_group(f"channel_id=1, {text}, use_global_device_ids=true", 4) == group


CUBLAS = """HloModule g

ENTRY %main (a: bf16[32,64], b: bf16[64,16]) -> (bf16[32,16], s8[4194304]) {
  %a = bf16[32,64]{1,0} parameter(0)
  %b = bf16[64,16]{1,0} parameter(1)
  ROOT %c = (bf16[32,16]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""


def test_products_left_to_the_library_of_gpus():
    assert count(parse(CUBLAS), 1).dot_flops == 2 * 32 * 64 * 16


@pytest.mark.parametrize(("one", "other", "counted"), [("s8", "s8", 1), ("f8e5m2", "f8e4m3fn", 1), ("s8", "bf16", 0)])
def test_products_of_8_bits(one, other, counted):
    text = CUBLAS.replace("bf16[32,64]", f"{one}[32,64]").replace("bf16[64,16]", f"{other}[64,16]")
    cost = count(parse(text), 1)
    assert (cost.dot_flops, cost.eight_bit_flops) == (2 * 32 * 64 * 16, counted * 2 * 32 * 64 * 16)


SLICES = """HloModule s

ENTRY %main (g: bf16[160,8,128]) -> bf16[160,8,128] {
  %g = bf16[160,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after = token[] after-all()
  %send = (bf16[160,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%g, %after), channel_id=2, WHERE
  %recv = (bf16[160,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%after), channel_id=1, WHERE
  ROOT %sum = bf16[160,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%recv), index=0
}
"""


@pytest.mark.parametrize(
    ("target", "group"),
    [
        ('"{1,2,3,4}x{0:1}"', (0, 2, 4, 6)),
        ("{{100000,300000},{100001,300001},{200000,400000},{200001,400001}}", (0, 4)),
    ],
)
def test_collectives_between_slices_are_left_to_the_hosts(target, group):
    where = f'frontend_attributes={{_xla_megascale_target={target},_xla_megascale_transfer_type="ALL_REDUCE"}}'
    (reduce,) = count(parse(SLICES.replace("WHERE", where)), 8).collectives
    assert (reduce.opcode, reduce.group, reduce.payload) == ("all-reduce", group, 160 * 8 * 128 * 2)


def test_types():
    small, large = arrays_of("(pred[]{:T(512)}, bf16[2,3]{1,0:T(8,128)(2,1)S(1)})")
    assert (small.bytes, small.in_hbm) == (1, True)
    assert (large.bytes, large.in_hbm) == (12, False)


def test_text_without_an_entry():
    with pytest.raises(LclmError, match="no ENTRY"):
        parse("HloModule empty")
