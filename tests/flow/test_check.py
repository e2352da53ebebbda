"""Claims about the conformance kit: good cells pass, and each kind of broken cell is told by the right check."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax.cells.elman import ElmanCell
from rnn_jax.cells.gru import GRUCell
from rnn_jax.cells.lstm import LSTMCarry, LSTMCell
from rnn_jax.flow import CellReport, check_cell
from rnn_jax.flow.conformance import subject, unroll_checks
from rnn_jax.flow.conformance.numbers import relative_difference
from rnn_jax.flow.conformance.report import Check, Failed

ASKED_FOR = {"context", "key"}  # checks of what a cell must ask for


class Good(rnn_jax.Cell):
    """A leaky cell that breaks no rule, h' = f h + (1 - f) tanh(z); each cell below breaks one."""

    gate_ranges: ClassVar = {"f": (0.0, 1.0), "g": (-1.0, 1.0)}

    def __init__(self, in_features, hidden_features, *, dtype=None, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        sizes = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.input = nnx.Linear(in_features, 2 * hidden_features, **sizes)
        self.recurrent = nnx.Linear(hidden_features, 2 * hidden_features, use_bias=False, **sizes)

    def preactivations(self, carry, x):
        return jnp.split((self.input(x) + self.recurrent(carry)).astype(carry.dtype), 2, axis=-1)

    def gates(self, carry, x):
        f, g = self.preactivations(carry, x)
        return {"f": jax.nn.sigmoid(f), "g": jnp.tanh(g)}

    def __call__(self, carry, x):
        gates = self.gates(carry, x)
        h = gates["f"] * carry + (1.0 - gates["f"]) * gates["g"]
        return h, h


class PromotesDtypes(Good):
    def __call__(self, carry, x):
        h, _ = super().__call__(carry, x)
        h = h * jnp.ones(())  # float64 where x64 is on
        return h, h


class ComputesInFloat32(Good):
    def gates(self, carry, x):
        # A GPU takes a cast there and back out of the program, but not this.
        rounded = jax.tree.map(lambda gate: jax.lax.reduce_precision(gate, 8, 23), super().gates(carry, x))
        return {name: gate.astype(jnp.float32).astype(gate.dtype) for name, gate in rounded.items()}


class DropsAGradient(Good):
    def gates(self, carry, x):
        gates = super().gates(carry, x)
        return {**gates, "f": jax.lax.stop_gradient(gates["f"])}


class GrowsItsCarry(Good):
    def __call__(self, carry, x):
        h, y = super().__call__(carry[..., : self.hidden_features], x)
        return jnp.concatenate([h, h], axis=-1), y


class WidensItsCarry(Good):
    def __call__(self, carry, x):
        h, y = super().__call__(carry, x)
        return h.astype(jnp.complex64 if h.dtype == jnp.float32 else jnp.complex128), y


class MixesExamples(Good):
    def __call__(self, carry, x):
        return super().__call__(carry, x - jnp.mean(x, axis=tuple(range(x.ndim - 1)), keepdims=True))


class GateOutOfRange(Good):
    def gates(self, carry, x):
        gates = super().gates(carry, x)
        return {**gates, "f": 1.2 * gates["f"] - 0.1}


class GateRangeWithoutGate(Good):
    gate_ranges: ClassVar = {"forget": (0.0, 1.0)}


class StepWithoutItsGates(Good):
    """Has its equations twice, so that one day they will differ."""

    def __call__(self, carry, x):
        f, g = self.preactivations(carry, x)
        h = jax.nn.sigmoid(f) * carry + (1.0 - jax.nn.sigmoid(f)) * jnp.tanh(g)
        return h, h


class OverflowsAtLargeInput(Good):
    """The textbook's sigmoid: exp(z) is inf for z > 88 in float32, and inf / inf is NaN."""

    def gates(self, carry, x):
        f, g = self.preactivations(carry, x)
        return {"f": jnp.exp(f) / (1.0 + jnp.exp(f)), "g": jnp.tanh(g)}


class NoGradientAtZero(Good):
    """A norm has no gradient at zero, where padding is put too, so that NaN reaches the parameters."""

    def preactivations(self, carry, x):
        z = x @ self.input.kernel
        z = z / (1.0 + jnp.sqrt(jnp.sum(jnp.square(z), axis=-1, keepdims=True)))
        return jnp.split((z + self.recurrent(carry)).astype(carry.dtype), 2, axis=-1)


class KeepsARandomState(Good):
    def __init__(self, *args, rngs, **kwargs):
        super().__init__(*args, rngs=rngs, **kwargs)
        self.noise = rngs.params.fork()


class HidesAParameter(Good):
    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, **kwargs):
        super().__init__(in_features, hidden_features, param_dtype=param_dtype, **kwargs)
        self.gain = nnx.Variable(jnp.ones((), param_dtype))

    def __call__(self, carry, x):
        return super().__call__(carry, x * self.gain[...])


class StopsAGradient(HidesAParameter):
    """No gradient reaches the gain, but weight decay does."""

    def __call__(self, carry, x):
        return super(HidesAParameter, self).__call__(carry, x * jax.lax.stop_gradient(self.gain[...]))


class StopsAGradientAtZero(StopsAGradient):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain[...] = jnp.zeros_like(self.gain[...])


class HasAConstant(Good):
    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, **kwargs):
        super().__init__(in_features, hidden_features, param_dtype=param_dtype, **kwargs)
        self.gain = rnn_jax.Constant(jnp.full((), 0.5, param_dtype))

    def __call__(self, carry, x):
        return super().__call__(carry, x * self.gain[...])


class IgnoresParamDtype(Good):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.input.bias = nnx.Param(self.input.bias[...].astype(jnp.float32))


class BroadcastsInSilence(Good):
    def preactivations(self, carry, x):
        f, g = super().preactivations(carry, x)
        return f + self.input.bias[: self.hidden_features], g


class NoBatchInItsCarry(Good):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape[-1:], rngs, carry_init)


class OneOutputForAll(Good):
    def __call__(self, carry, x):
        h, y = super().__call__(carry, x)
        return h, jnp.sum(y)


class Untraceable(Good):
    def __call__(self, carry, x):
        if jnp.sum(x) > 0:
            return super().__call__(carry, x)
        return carry, carry


class Raises(Good):
    def __call__(self, carry, x):
        raise RuntimeError("out of ideas\nand much more to say")


class SurrogateGradient(Good):
    def gates(self, carry, x):
        gates = super().gates(carry, x)
        hard = (gates["f"] > 0.5).astype(gates["f"].dtype)
        return {**gates, "f": gates["f"] + jax.lax.stop_gradient(hard - gates["f"])}


class Counted(NamedTuple):
    h: jax.Array
    t: jax.Array


class NaNAfter1000Steps(Good):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        t = jnp.zeros(input_shape[:-1], jnp.int32)
        return Counted(super().initialize_carry(input_shape, rngs, carry_init), t)

    def __call__(self, carry, x):
        h = jnp.tanh(self.preactivations(carry.h, x)[0])
        h = h + 0.0 * jnp.sqrt(jnp.expand_dims(999 - carry.t, -1).astype(h.dtype))
        return Counted(h, carry.t + 1), h


class Keyed(NamedTuple):
    h: jax.Array
    key: jax.Array


class KeyInCarry(Good):
    """Carries numbers of 1e9 along, beside which everything else is small."""

    mixes, factor = 0.0, 1.0

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        key = jnp.full((*input_shape[:-1], 2), 4_000_000_000, jnp.uint32)
        return Keyed(super().initialize_carry(input_shape, rngs, carry_init), key)

    def gates(self, carry, x):
        return super().gates(carry.h, x)

    def __call__(self, carry, x):
        x = x - self.mixes * jnp.mean(x, axis=tuple(range(x.ndim - 1)), keepdims=True)
        gates = self.gates(carry, x)
        h = gates["f"] * carry.h + (1.0 - gates["f"]) * gates["g"]
        return Keyed(h, carry.key + jnp.uint32(1)), h * (self.factor if h.dtype == jnp.bfloat16 else 1.0)


class MixesExamplesBesideAKey(KeyInCarry):
    """Mixes them by 1e-4, which is 1e-14 of the key."""

    mixes = 1e-4


class WrongInBfloat16BesideAKey(KeyInCarry):
    factor = 1000.0


class OneGateComputedOtherwise(LSTMCell):
    """Its `activate` tells of a forget gate that the step does not use."""

    def pointwise(self, z, carry):
        gates = {**self.activate(z, carry), "forget": jax.nn.sigmoid(z["forget"] + 1.0)}
        c = gates["forget"] * carry.c + gates["input"] * gates["candidate"]
        h = gates["output"] * jnp.tanh(c)
        return LSTMCarry(c, h), h


class ResetGateToldOtherwise(GRUCell):
    """The candidate is computed from another r than the one that is returned."""

    def activate(self, z, carry):
        return {**super().activate(z, carry), "reset": jax.nn.sigmoid(2.0 * z["reset"])}


class GatesUnderJit(GRUCell):
    """The reset gate is read within the jitted function only."""

    def activate(self, z, carry):
        return jax.jit(super().activate)(dict(z), carry)


class ThrowsItsCarryAway(Good):
    def __call__(self, carry, x):
        return carry, super().__call__(carry, x)[1]


class CountsButThrowsItsCarryAway(KeyInCarry):
    def __call__(self, carry, x):
        new, y = super().__call__(carry, x)
        return Keyed(carry.h, new.key), y


class HasAnUnusedParameter(Good):
    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, **kwargs):
        super().__init__(in_features, hidden_features, param_dtype=param_dtype, **kwargs)
        self.spare = nnx.Linear(in_features, 2, use_bias=False, param_dtype=param_dtype, rngs=kwargs["rngs"])


class StartsAtZero(Good):
    """Each of two factors is zero at the start and hides the other; the initial carry has a parameter of its own."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, **kwargs):
        super().__init__(in_features, hidden_features, param_dtype=param_dtype, **kwargs)
        self.a, self.b = nnx.Param(jnp.zeros((), param_dtype)), nnx.Param(jnp.zeros((), param_dtype))
        self.start = nnx.Param(jnp.zeros((hidden_features,), param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.start[...], (*input_shape[:-1], self.hidden_features))

    def __call__(self, carry, x):
        return super().__call__(carry, x + self.a[...] * self.b[...])


class ResidualElman(ElmanCell):
    """A pointwise cell whose step is more than `pointwise`, so that it runs by the plain scan."""

    def __call__(self, carry, x):
        new, y = super().__call__(carry, x)
        return carry + 0.5 * new, carry + 0.5 * y


class Zoneout(rnn_jax.Cell):
    """A part of the state stays what it was; gates and carry are those of the cell within."""

    name = "lstm"

    def __init__(self, in_features, hidden_features, *, dtype=None, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        sizes = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.inner = rnn_jax.make_cell(self.name, in_features, hidden_features, **sizes)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.inner.initialize_carry(input_shape, rngs, carry_init)

    def gates(self, carry, x):
        return self.inner.gates(carry, x)

    def __call__(self, carry, x):
        new, y = self.inner(carry, x)
        return jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, carry, new), y


class ZoneoutGRU(Zoneout):
    name = "gru"


class Exempt(SurrogateGradient):
    check_exemptions: ClassVar = {"gradients": "straight-through estimator"}


class ExemptFromNothing(Good):
    check_exemptions: ClassVar = {"gradient": "a slip of the pen"}


class ExemptWithoutReason(Good):
    check_exemptions: ClassVar = {"gradients": ""}


class Gateless(rnn_jax.Cell):
    def __init__(self, in_features, hidden_features, *, dtype=None, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        self.inner = ElmanCell(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, carry, x):
        return self.inner(carry, x)


class DrawsWithNumPy(Good):
    def __init__(self, *args, rngs, **kwargs):
        super().__init__(*args, rngs=rngs, **kwargs)
        self.scale = float(jax.random.uniform(rngs.params()))


class AddsABareBias(Good):
    def preactivations(self, carry, x):
        f, g = super().preactivations(carry, x)
        bias = self.input.bias[: self.hidden_features]
        return f + bias, g


class Explodes(ElmanCell):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, activation="identity", recurrent_kernel_init=nnx.initializers.normal(2.0), **kwargs)


class PointwiseWithoutActivate(ElmanCell):
    def pointwise(self, z, carry):
        h = jnp.tanh(z["candidate"])
        return h, h


def not_applicable(report):
    return {line.name for line in report.checks if line.passed is None}


def test_a_good_cell_passes_and_every_line_is_said():
    report = check_cell(Good)
    assert report.passed, str(report)
    assert not_applicable(report) == {"pointwise", *ASKED_FOR}
    assert all(line.detail for line in report.checks)
    assert len({line.name for line in report.checks}) == len(report.checks)


@pytest.mark.parametrize(
    ("cls", "only", "names"),
    [
        (DropsAGradient, ["usage", "gradients"], {"gradients"}),
        (MixesExamples, ["batch axes", "vmap", "scan"], {"batch axes"}),
        (MixesExamplesBesideAKey, ["batch axes", "gradients"], {"batch axes"}),
        (WrongInBfloat16BesideAKey, ["batch axes", "bfloat16"], {"bfloat16"}),
        (KeyInCarry, ["batch axes", "bfloat16", "adjoints", "padding"], set()),
        (KeepsARandomState, ["parameters", "jit and grad", "float64"], {"parameters"}),
        (StartsAtZero, ["parameters", "usage"], set()),
        (ResidualElman, ["gates", "pointwise"], set()),
        (Zoneout, ["usage", "gates"], set()),
        (ZoneoutGRU, ["gates"], set()),
        (GatesUnderJit, ["gates", "pointwise"], set()),
        (OneGateComputedOtherwise, ["gates", "pointwise"], {"gates"}),
        (ThrowsItsCarryAway, ["carry", "usage", "gates"], {"usage"}),
        (HasAnUnusedParameter, ["parameters", "usage"], {"usage"}),
        (DrawsWithNumPy, ["contract", "construction", "carry"], {"construction"}),
        (AddsABareBias, ["strict promotion", "carry"], {"strict promotion"}),
        (Gateless, ["contract", "gates"], {"gates"}),
        (StopsAGradient, ["parameters", "usage"], {"parameters"}),
        (OverflowsAtLargeInput, ["float64", "extreme inputs", "gates"], {"extreme inputs", "gates"}),
    ],
)
def test_a_broken_cell_fails_the_checks_that_it_should_and_no_other(cls, only, names):
    report = check_cell(cls, only=only)
    assert set(report.failed) == names, str(report)


@pytest.mark.parametrize(
    ("cls", "name", "says"),
    [
        (PromotesDtypes, "carry", "the carry becomes float64[5] in a step; allowed: float32[5], as before it."),
        (PromotesDtypes, "strict promotion", "TypePromotionError"),
        (GrowsItsCarry, "carry", "the carry becomes float64[10] in a step; allowed: float64[5], as before it."),
        (WidensItsCarry, "carry", "the carry becomes complex128[5] in a step; allowed: float64[5]"),
        (ComputesInFloat32, "float64", "computes in float32"),
        (IgnoresParamDtype, "float64", "input/bias is float32 with param_dtype=float64"),
        (ComputesInFloat32, "gradients", "by central differences"),
        (KeepsARandomState, "parameters", "noise/count is a random state"),
        (KeepsARandomState, "jit and grad", "TypeError: grad requires real- or complex-valued inputs"),
        (HidesAParameter, "parameters", "a gradient reaches gain"),
        (StopsAGradient, "parameters", "the weight decay of AdamW moves gain; allowed: nnx.Param for what is trained"),
        (StopsAGradientAtZero, "parameters", "the weight decay of AdamW moves gain"),
        (StopsAGradient, "parameters", "rnn_jax.Constant for what is not."),
        (MixesExamplesBesideAKey, "batch axes", "one batch axis against example by example: relative difference"),
        (ThrowsItsCarryAway, "usage", "the carry is never changed in a step"),
        (CountsButThrowsItsCarryAway, "usage", "the carry is never changed in a step"),
        (HasAnUnusedParameter, "usage", "depends on spare/kernel; allowed: parameters in use."),
        (OneGateComputedOtherwise, "gates", "halving what `activate` returns for forget changes nothing in a step"),
        (ResetGateToldOtherwise, "gates", "halving what `activate` returns for reset changes nothing in a step"),
        (DrawsWithNumPy, "construction", "ConcretizationTypeError"),
        (DrawsWithNumPy, "construction", "self.scale = float(jax.random.uniform(rngs.params()))"),
        (AddsABareBias, "strict promotion", "test_check.py:"),
        (AddsABareBias, "strict promotion", ": return f + bias, g; allowed: rnn_jax.add_bias(z, bias)"),
        (
            PromotesDtypes,
            "strict promotion",
            ": h = h * jnp.ones(())  # float64 where x64 is on; allowed: flax.nnx.nn.dtypes.",
        ),
        (Raises, "carry", "test_check.py:"),
        (Gateless, "gates", "Gateless is a rnn_jax.Cell without `gates(carry, x)`; allowed: that method"),
        (Gateless, "gates", "a subclass of flax.nnx.RNNCellBase."),
        (ExemptFromNothing, "contract", "check_exemptions names 'gradient'; allowed: carry, "),
        (ExemptWithoutReason, "contract", "check_exemptions gives no reason for gradients"),
        (BroadcastsInSilence, "strict promotion", "1 batch axes: ValueError: Operands could not be broadcast"),
        (NoBatchInItsCarry, "contract", "allowed: [*batch, ...] each"),
        (OneOutputForAll, "carry", "the output is float64[]; allowed: "),
        (Untraceable, "jit and grad", "TracerBoolConversionError"),
        (GateOutOfRange, "gates", "gate f is"),
        (GateRangeWithoutGate, "gates", "gate_ranges names forget; allowed: gates, f, g."),
        (StepWithoutItsGates, "gates", "halving what `gates` returns for f, g changes nothing"),
        (PointwiseWithoutActivate, "gates", "halving what `activate` returns for candidate changes nothing"),
        (OverflowsAtLargeInput, "extreme inputs", "outputs for inputs of 1e4: NaN"),
        (NoGradientAtZero, "extreme inputs", "gradients for inputs of zeros: NaN"),
        (NoGradientAtZero, "padding", "NaN in the padding gives: NaN"),
        (NaNAfter1000Steps, "long run", "nan at step 1001, behind numbers of"),
        (DropsAGradient, "gradients", "by central differences; allowed: 1e-6 apart (so at 5 of 5 points)"),
        (SurrogateGradient, "gradients", "by central differences"),
        (Raises, "scan", "RuntimeError: out of ideas"),
    ],
)
def test_a_failure_says_what_was_found(cls, name, says):
    (line,) = check_cell(cls, only=[name]).checks
    assert line.passed is False
    assert says in line.detail
    assert "\n" not in line.detail


@pytest.mark.parametrize(
    ("name", "spoilt", "says"),
    [
        ("padding", lambda unroll, *args, lengths=None, **kwargs: unroll(*args, **kwargs), "NaN in the padding"),
        ("resets", lambda unroll, *args, resets=None, **kwargs: unroll(*args, **kwargs), "outputs and carry"),
        ("unroll", lambda unroll, *args, reverse=None, **kwargs: unroll(*args, **kwargs), "lengths, resets: outputs"),
        (
            "unroll",
            lambda unroll, cell, *args, **kwargs: unroll(jax.lax.stop_gradient(cell), *args, **kwargs),
            "forward: gradient to the parameters: relative difference",
        ),
        (
            "resets",
            lambda unroll, cell, xs, *args, **kwargs: unroll(cell, jax.lax.stop_gradient(xs), *args, **kwargs),
            "gradient to the inputs: relative difference 1; allowed: 1e-08.",
        ),
    ],
)
def test_an_unroll_that_goes_wrong_is_told(monkeypatch, name, spoilt, says):
    class Elman(ElmanCell):
        """A class of its own, for which nothing is compiled yet."""

    right = subject.unroll
    monkeypatch.setattr(subject, "unroll", lambda *args, **kwargs: spoilt(right, *args, **kwargs))
    (line,) = check_cell(Elman, only=[name]).checks
    assert line.passed is False
    assert says in line.detail


@pytest.mark.parametrize(
    ("instrument", "field", "says"),
    [
        ("gradient_profile", "log10_norm", "gradient_profile is 0.1 off in log10; allowed: 0.0001."),
        ("gradient_profile", "grads", "parameter gradients of gradient_profile: relative difference 0.1;"),
        ("adjoints", "direction", "flow.adjoints: relative difference 0.1; allowed: 1e-05."),
    ],
)
def test_an_instrument_that_goes_wrong_is_told(monkeypatch, instrument, field, says):
    def spoilt(*args, **kwargs):
        result = right(*args, **kwargs)
        change = (lambda x: x + 0.1) if "log10" in field else (lambda x: 1.1 * x)
        return dataclasses.replace(result, **{field: jax.tree.map(change, getattr(result, field))})

    right = getattr(unroll_checks, instrument)
    monkeypatch.setattr(unroll_checks, instrument, spoilt)
    (line,) = check_cell(Good, only=["adjoints"]).checks
    assert line.passed is False
    assert says in line.detail


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Raises, {"carry"}),
        (Untraceable, {"carry"}),
        (PromotesDtypes, {"strict promotion", "carry"}),
        (GrowsItsCarry, {"carry"}),
        (OneOutputForAll, {"carry"}),
        (NoBatchInItsCarry, {"contract"}),
        pytest.param(ComputesInFloat32, {"float64"}, marks=pytest.mark.slow),
    ],
)
def test_one_cause_gives_one_or_two_failures(cls, names):
    report = check_cell(cls)
    assert set(report.failed) == names, str(report)
    assert len(report.checks) == 24
    assert sum(line.startswith("FAIL") for line in str(report).splitlines()) == len(names)


def test_what_relies_on_a_failure_is_not_run_and_named_in_one_line():
    report = check_cell(GrowsItsCarry, only=["carry", "float64", "batch axes", "unroll"])
    assert [line.note for line in report.checks] == ["", "not run", "not run", "not run"]
    assert "not run, as they rely on carry: float64, batch axes, unroll" in str(report).splitlines()
    assert str(report).splitlines()[-1] == "GrowsItsCarry FAILS 1 of 1 checks (3 not run): carry."


def test_an_exception_is_not_repeated():
    report = check_cell(Raises, only=["carry", "strict promotion"])
    assert [line.note for line in report.checks] == ["", "repeated"]
    assert report.failed == ("carry",)
    assert str(report).count("RuntimeError: out of ideas") == 1
    assert "the same exception as in carry: strict promotion" in str(report).splitlines()


def test_an_exception_names_the_line_of_the_cell():
    (line,) = check_cell(Raises, only=["carry"]).checks
    assert line.detail.startswith("RuntimeError: out of ideas at ")
    assert line.detail.endswith('raise RuntimeError("out of ideas\\nand much more to say")')


def test_an_exemption_is_a_status_of_its_own():
    report = check_cell(Exempt, only=["contract", "gradients"])
    assert report.passed
    assert report.checks[1] == Check("gradients", None, "straight-through estimator", "exempt")
    assert str(report).splitlines()[1] == "exempt  gradients  straight-through estimator"
    assert str(report).splitlines()[-1] == "Exempt passes all 1 checks (1 exempt)."


@pytest.mark.parametrize(
    ("name", "passed", "not_applicable"),
    [
        ("flax.nnx:LSTMCell", ["contract", "parameters"], ["context", "key", "pointwise", "gates"]),
        ("tests.user_cells:Zoneout(cell='elman')", ["key"], ["context"]),
        ("tests.user_cells:AttendingCell", ["context", "padding"], ["key"]),
    ],
)
def test_what_a_cell_does_not_claim_is_not_asked_of_it(name, passed, not_applicable):
    report = check_cell(name, only=[*passed, *not_applicable])
    assert [line.name for line in report.checks if line.passed] == passed, str(report)
    assert {line.name for line in report.checks if line.passed is None} == set(not_applicable)


def test_a_built_cell_is_not_constructed():
    cell = rnn_jax.make_cell("elman", 2, 3, rngs=nnx.Rngs(0))
    (line,) = check_cell(cell, only=["construction"]).checks
    assert line.passed is None


def test_every_leaf_has_its_own_scale():
    want = [np.array([1e9]), np.array([1.0])]
    assert relative_difference([want[0], want[1]], want, 0.0, "") == 0.0
    with pytest.raises(Failed, match="relative difference"):
        relative_difference([want[0], np.array([1000.0 * 2e6])], want, 1e-12, "")
    noise = [np.array([1.0]), np.array([1e-17])]
    assert relative_difference([noise[0], np.array([-1e-17])], noise, 1e-12, "") < 1e-12
    key = [np.array([2_000_000_000], np.uint32), np.array([1.0])]
    with pytest.raises(Failed, match="allowed: equal integers"):
        relative_difference([key[0] + np.uint32(1), key[1]], key, 0.1, "")
    with pytest.raises(Failed, match="nan"):
        relative_difference([key[0], np.array([np.nan])], key, 0.1, "")


def test_a_constant_is_allowed():
    assert check_cell(HasAConstant, only=["parameters", "usage", "gradients", "jit and grad"]).passed


def test_a_kink_does_not_fail_a_right_cell():
    for seed in range(3):
        report = check_cell("elman(activation='relu')", seed=seed, only=["gradients"])
        assert report.passed, str(report)


def test_growth_is_allowed_but_named():
    (line,) = check_cell(Explodes, only=["long run"]).checks
    assert line.passed
    assert "grows beyond float32 by step" in line.detail
    assert check_cell(Explodes, only=["extreme inputs"]).passed


def test_a_built_cell_keeps_its_sizes_and_dtype():
    cell = rnn_jax.make_cell("elman", 2, 7, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, cell)
    report = check_cell(cell, only=["contract", "bfloat16", "extreme inputs"])
    assert report.passed, str(report)
    assert report.cell == "ElmanCell"
    assert "float64[*batch, 7]" in report.checks[0].detail
    assert "finite in float64" in report.checks[-1].detail
    jax.tree.map(np.testing.assert_array_equal, cell, before)
    assert cell.param_dtype == jnp.float64


@pytest.mark.parametrize("x64", [False, True])
def test_the_report_does_not_depend_on_settings_nor_change_them(x64):
    only = ["carry", "float64", "strict promotion", "gradients", "padding"]
    with jax.enable_x64(x64), jax.debug_nans(True):
        report = check_cell("elman", only=only)
        assert jnp.zeros(()).dtype == (jnp.float64 if x64 else jnp.float32)
    assert report.passed, str(report)
    assert report.checks[0].detail == "structure, shapes and dtypes kept; output float32[*batch, 5]"


def test_a_specification_with_arguments_is_a_name():
    report = check_cell(
        "elman(use_bias=False, dtype='bfloat16')", hidden_features=2, only=["carry", "float64", "pointwise"]
    )
    assert report.passed, str(report)
    assert "output bfloat16[*batch, 2]" in report.checks[0].detail


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("nosuch", "unknown cell 'nosuch'; allowed: elman"),
        ("collections:OrderedDict", ""),
        ("math:sqrt", "has no flax.nnx.RNNCellBase"),
        ("rnn_jax.cell:Cell", "cell 'rnn_jax.cell:Cell' has no `__call__` of its own; allowed"),
        ("elman(activation='nosuch')", "activation='nosuch' is unknown"),
    ],
)
def test_a_cell_that_cannot_be_built_is_told_in_one_sentence(cell, says):
    with pytest.raises(ValueError, match=r".") as error:
        check_cell(cell)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_check_is_told():
    with pytest.raises(ValueError, match="check 'gate' is unknown; allowed: contract, carry, "):
        check_cell("elman", only=["gate"])


def test_the_report_is_aligned_and_ends_with_the_verdict():
    good = CellReport("lstm", (Check("carry", True, "kept"), Check("batch axes", None, "none")))
    assert good.passed
    assert str(good).splitlines() == [
        "ok    carry       kept",
        "n/a   batch axes  none",
        "",
        "lstm passes all 1 checks (1 more do not apply).",
    ]
    bad = CellReport("mine", (Check("carry", False, "float64; allowed: float32."), Check("vmap", False, "no")))
    assert not bad.passed
    assert bad.failed == ("carry", "vmap")
    assert str(bad).splitlines()[0] == "FAIL  carry  float64; allowed: float32."
    assert str(bad).splitlines()[-1] == "mine FAILS 2 of 2 checks: carry, vmap."
