"""Faults planted into ports, and what the doctor should say about each: the cause's name and the place.

`python -m parity_tests.doctor_faults` prints the table of all faults, the named causes and whether they are right.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax_ddpm.doctor import compare
from parity_tests import doctor_networks


@dataclass(frozen=True)
class Fault:
    network: str
    wrong: str
    causes: str
    """Names of causes that are right, separated by |."""
    places: str
    """Modules of theirs at which the fault may be found, separated by |. "": the whole network."""
    options: tuple = ()

    @property
    def name(self) -> str:
        return f"{self.network}: {self.wrong}"


@dataclass(frozen=True)
class Verdict:
    """What the doctor said of a fault."""

    name: str
    expected: str
    named: str
    place: str
    cause_right: bool
    place_right: bool
    sentence: str

    def __str__(self) -> str:
        mark = "right" if self.cause_right and self.place_right else "WRONG" if not self.cause_right else "PLACE"
        return f"{mark:6} {self.name:55} {self.expected:40} {self.named:28} {self.place}"


def faults_of(network: str, text: str) -> Iterator[Fault]:
    """One fault from each line: what is wrong; causes; places."""
    for line in text.strip().splitlines():
        wrong, causes, places = (part.strip() for part in line.split(";"))
        yield Fault(network, wrong, causes, places)


FAULTS = [
    *faults_of(
        "pictures",
        """
        circular padding; padding_mode|padding; stem
        GroupNorm epsilon; epsilon; norm1
        one-pass variance; one_pass_variance; norm1
        unbiased variance; variance_biased; norm1
        epsilon outside the root; epsilon_outside; norm1
        shift before scale; affine; norm1
        scale and shift swapped; affine; norm1
        scale plus one; affine; norm1
        bias missing; bias_missing; conv1
        bfloat16; dtype; conv1
        SAME padding; padding; down
        padding on one axis only; padding; down
        BatchNorm in training mode; mode|batchnorm_mode; bn
        BatchNorm epsilon; epsilon; bn
        dilation missing; dilation; depth
        GroupNorm groups; groups; norm2
        LayerNorm for GroupNorm; groups; norm2
        transposed convolution's crop; transposed_crop; up
        dropout on; dropout; depth
        kernel flipped; kernel_flipped; stem
        kernel's height and width swapped; kernel_transposed; conv1
        in and out swapped; kernel_in_out_swapped; conv1
        groups' channels in another order; group_channels|channels_permuted; depth
        transposed convolution not flipped; kernel_flipped; up
        transposed convolution's in and out swapped; kernel_in_out_swapped; up
        kernel's rows reversed; kernel_flipped_height; stem
        classifier reshaped, not transposed; reshaped|weight_transposed; head
        running variance's root; variance; bn
        picture transposed; height_width_swapped; stem
        pictures in [0, 1]; scale; stem
        activation before the norm; activation_extra|activation_order; norm1
        ReLU for SiLU; activation; conv1
        sigmoid for SiLU; activation; conv1
        activation missing; activation_missing; conv1
        bias doubled; bias_doubled|term_extra; down|conv1
        residual missing; residual_missing; down
        residual of the normalised; another_tensor; down
        residual doubled; residual_doubled; down
        residual scaled; scale; down
        residual subtracted; residual_subtracted; down
        GELU by tanh; activation; depth
        GELU by sigmoid; activation; depth
        leaky ReLU's slope; activation; up
        ELU for leaky ReLU; activation; up
        concatenation order; concatenation_order; fuse
        skip scaled; scale|expression; fuse
        skip before the residual; another_tensor; fuse
        padding not counted; pooling; head
        maximum pooling; pooling; head
        SAME pooling; pooling; head
        flattened channels last; flatten_order; head
        """,
    ),
    *faults_of(
        "sizes",
        """
        nearest for bilinear; interpolation; b
        align_corners; interpolation; b
        cubic for bilinear; interpolation; b
        average for maximum; pooling; c
        strided for pooled; pooling; c
        bilinear for nearest; interpolation; d
        tiled for repeated; interpolation; d
        antialiased; interpolation; e
        edges repeated for reflected; padding|padding_mode; f
        zeros for reflected; padding|padding_mode; f
        """,
    ),
    *faults_of(
        "timed",
        """
        epsilon 1e-3; epsilon; norm1
        groups of norm1; groups; norm1
        square weights not transposed; weight_transposed; linear2
        bias not copied; bias_missing; conv1
        t off by one; time_offset; linear1
        t over 1000; time_scale; linear1
        frequencies over n - 1; frequency_exponent; linear1
        period 1000; max_period; linear1
        two pi; time_scale; linear1
        cosines first; embedding_order; linear1
        sines and cosines interleaved; embedding_order; linear1
        time not activated; activation_missing; time1
        time added after the norm; term_missing; norm1
        time added after the activation; term_missing; norm1
        time multiplied; expression; norm1
        time left out; term_missing; norm1
        time added twice; term_doubled; norm1
        scale and shift swapped; scale_shift_swapped; conv2
        scale without one; scale_shift; conv2
        """,
    ),
    *faults_of(
        "tokens",
        """
        LayerNorm epsilon; epsilon; norm1
        square projection not transposed; weight_transposed; proj
        embedding's rows shifted; embedding_row; label
        patches by columns; flatten_order; norm1
        embedding scaled; embedding_scale|expression|scale; norm1
        label last; concatenation_order; norm1
        positions missing; term_missing; norm1
        norm missing; another_tensor|layer_missing; qkv
        two heads; attention_heads; proj
        packed by heads; qkv_packing; proj
        heads last; qkv_packing; proj
        key and value swapped; qkv_order; proj
        softmax not scaled; attention_scale; proj
        softmax scaled by the width; attention_scale; proj
        causal mask; attention_mask; proj
        softmax over queries; softmax_axis; proj
        heads not moved back; heads_merge; proj
        norm after the residual; expression|another_tensor|layer_missing; fc1|norm2
        GELU by tanh in the MLP; activation; fc2
        mean for the first token; pooling|token; head
        second token; token;  head
        """,
    ),
    *faults_of(
        "attended",
        """
        two heads; attention_heads; mha
        query and key swapped; qkv_order; mha
        key and value swapped; qkv_order; mha
        heads split the other way; qkv_packing|heads_merge; mha
        output projection not transposed; weight_transposed; mha
        """,
    ),
]


def examine(fault: Fault) -> Verdict:
    """Build the port with its fault, compare, and judge the answer."""
    theirs, ours, inputs = doctor_networks.build(fault.network, fault.wrong)
    return judged(fault, compare(theirs, ours, inputs))


def judged(fault, result) -> Verdict:
    finding = result.finding or next(iter(result.warnings), None)
    cause = finding.cause if finding else None
    named = cause.name if cause else ("nothing" if result.equal else "no cause")
    place = finding.pair.theirs.path if finding else ""
    if named == "no cause" and result.setup:
        named = result.setup[0].name
    return Verdict(
        **{"name": fault.name, "expected": fault.causes, "named": named, "place": place},
        cause_right=named in fault.causes.split("|"),
        place_right=place in fault.places.split("|"),
        sentence=result.sentence,
    )


def table(faults: Sequence[Fault], examine: Callable[[Fault], Verdict] = examine, show=print) -> list[Verdict]:
    """Examine all, and show a line for each and the share that is right."""
    verdicts = []
    for fault in faults:
        verdict = examine(fault)
        show(str(verdict))
        if not (verdict.cause_right and verdict.place_right):
            show(f"       {verdict.sentence}")
        verdicts.append(verdict)
    right, places = sum(v.cause_right for v in verdicts), sum(v.place_right for v in verdicts)
    show(f"{len(verdicts)} faults: cause right {right}, place right {places}")
    return verdicts


if __name__ == "__main__":
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or any(word in fault.name for word in sys.argv[1:])]
    table(chosen)
