"""Cells as a user would write them, from papers, at most 30 lines each: what the contract of a cell must carry."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import rnn_jax
from rnn_jax import Cell, Constant, PointwiseCell, draw_kernel, scale_by


class IndRNNCell(PointwiseCell):
    """IndRNN (Li et al. 2018, arXiv 1803.04831): h' = relu(x W + u o h + b)."""

    input_gates, recurrent_gates = ("candidate",), ()

    def __init__(self, in_features, hidden_features, *, rngs, **kwargs):
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)
        self.scale = nnx.Param(jax.random.uniform(rngs.params(), (hidden_features,), self.param_dtype))

    def activate(self, z, carry):
        return {"candidate": jax.nn.relu(z["candidate"] + scale_by(carry, self.scale[...]))}

    def pointwise(self, z, carry):
        h = self.activate(z, carry)["candidate"]
        return h, h


class SRUCell(PointwiseCell):
    """SRU (Lei et al. 2018, arXiv 1709.02755), with a projection of x where F differs from H."""

    input_gates, recurrent_gates = ("candidate", "forget", "reset", "skip"), ()
    gate_ranges = {"forget": (0.0, 1.0), "reset": (0.0, 1.0)}

    def __init__(self, in_features, hidden_features, *, rngs, **kwargs):
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)
        self.v_f, self.v_r = (nnx.Param(jnp.full((hidden_features,), 0.1, self.param_dtype)) for _ in range(2))

    def activate(self, z, carry):
        return {
            "forget": jax.nn.sigmoid(z["forget"] + scale_by(carry, self.v_f[...])),
            "reset": jax.nn.sigmoid(z["reset"] + scale_by(carry, self.v_r[...])),
        }

    def pointwise(self, z, carry):
        gates = self.activate(z, carry)
        c = gates["forget"] * carry + (1 - gates["forget"]) * z["candidate"]
        return c, gates["reset"] * c + (1 - gates["reset"]) * z["skip"]


class CarryOfLSTM(NamedTuple):
    c: jax.Array
    h: jax.Array


class ProjectedLSTMCell(Cell):
    """LSTM with a recurrent projection (Sak, Senior, Beaufays 2014, arXiv 1402.1128): h has fewer features than c."""

    def __init__(self, in_features, hidden_features, *, projection=2, dtype=None, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        self.projection, drawn = projection, {"dtype": param_dtype, "rngs": rngs}
        self.kernel = draw_kernel("lecun_normal", in_features, hidden_features, 4, **drawn)
        self.recurrent_kernel = draw_kernel("lecun_normal", projection, hidden_features, 4, **drawn)
        self.projection_kernel = draw_kernel("lecun_normal", hidden_features, projection, **drawn)
        self.bias = nnx.Param(jnp.zeros(4 * hidden_features, param_dtype))

    @property
    def out_features(self):
        return self.projection

    def carry_spec(self):
        sizes = (self.hidden_features, self.projection)
        return CarryOfLSTM(*(jax.ShapeDtypeStruct((size,), self.param_dtype) for size in sizes))

    def gates(self, carry, x):
        z = self.dense(x, self.kernel[...], self.bias[...]) + self.dense(carry.h, self.recurrent_kernel[...])
        i, f, g, o = jnp.split(z, 4, axis=-1)
        gates = {"input": i, "forget": f, "output": o}
        return {name: jax.nn.sigmoid(value) for name, value in gates.items()} | {"candidate": jnp.tanh(g)}

    def __call__(self, carry, x):
        gates = self.gates(carry, x)
        c = gates["forget"] * carry.c + gates["input"] * gates["candidate"]
        h = self.dense(gates["output"] * jnp.tanh(c), self.projection_kernel[...])
        return CarryOfLSTM(c, h), self.as_output(h, x)


class Zoneout(nnx.RNNCellBase):
    """Zoneout (Krueger et al. 2017, arXiv 1606.01305) around any cell: units keep their old state at random."""

    def __init__(self, in_features, hidden_features, *, cell="lstm", rate=0.2, param_dtype=jnp.float32, rngs):
        self.cell = rnn_jax.make_cell(cell, in_features, hidden_features, param_dtype=param_dtype, rngs=rngs)
        self.in_features, self.rate = in_features, rate

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.cell.initialize_carry(input_shape, rngs, carry_init)

    def __call__(self, carry, x, *, key=None):
        new, y = self.cell(carry, x)
        keys = iter([] if key is None else jax.random.split(key, len(jax.tree.leaves(new))))

        def mix(old, part):
            if key is None:  # the mean of what the keys give
                return self.rate * old + (1 - self.rate) * part
            return jnp.where(jax.random.bernoulli(next(keys), jnp.float32(self.rate), old.shape), old, part)

        new = jax.tree.map(mix, carry, new)
        return new, getattr(new, "h", new).astype(y.dtype)

    @property
    def num_feature_axes(self):
        return self.cell.num_feature_axes


class ConvLSTMCell(Cell):
    """ConvLSTM (Shi et al. 2015, arXiv 1506.04214) without peepholes, on images `[*batch, rows, columns, channels]`."""

    gate_ranges = {"input": (0.0, 1.0), "forget": (0.0, 1.0), "output": (0.0, 1.0)}

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        channels = in_features + hidden_features
        self.conv = nnx.Conv(channels, 4 * hidden_features, (3, 3), param_dtype=param_dtype, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
        return CarryOfLSTM(zeros, zeros)

    def gates(self, carry, x):
        z = self.conv(jnp.concatenate([x.astype(self.param_dtype), carry.h], axis=-1))
        i, f, g, o = jnp.split(z, 4, axis=-1)
        gates = {"input": i, "forget": f + 1, "output": o}
        return {name: jax.nn.sigmoid(value) for name, value in gates.items()} | {"candidate": jnp.tanh(g)}

    def __call__(self, carry, x):
        gates = self.gates(carry, x)
        c = gates["forget"] * carry.c + gates["input"] * gates["candidate"]
        h = gates["output"] * jnp.tanh(c)
        return CarryOfLSTM(c, h), self.as_output(h, x)

    @property
    def num_feature_axes(self):
        return 3


class AttendingCell(Cell):
    """A GRU that also reads what it attends to in its context `[*batch, S, F]` (Luong et al. 2015, 1508.04025)."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        self.query = draw_kernel("lecun_normal", hidden_features, in_features, dtype=param_dtype, rngs=rngs)
        self.gru = rnn_jax.GRUCell(2 * in_features, hidden_features, param_dtype=param_dtype, rngs=rngs)

    def context_spec(self):
        return jax.ShapeDtypeStruct((6, self.in_features), self.param_dtype)

    def read(self, carry, x, context):
        context = context.astype(self.param_dtype)
        weights = jax.nn.softmax(jnp.einsum("...sf,...f->...s", context, self.dense(carry, self.query[...])), axis=-1)
        attended = jnp.einsum("...s,...sf->...f", weights, context)
        return jnp.concatenate([x, attended.astype(x.dtype)], axis=-1)

    def gates(self, carry, x, *, context):
        return self.gru.gates(carry, self.read(carry, x, context))

    def __call__(self, carry, x, *, context):
        return self.gru(carry, self.read(carry, x, context))


class EchoStateCell(PointwiseCell):
    """Echo state network (Jaeger 2001): an Elman cell that is not trained, with a spectral radius below 1."""

    input_gates = recurrent_gates = ("candidate",)
    gate_ranges = {"candidate": (-1.0, 1.0)}

    def __init__(self, in_features, hidden_features, *, radius=0.9, rngs, **kwargs):
        super().__init__(in_features, hidden_features, use_bias=False, rngs=rngs, **kwargs)
        self.kernel = Constant(self.kernel[...])
        self.recurrent_kernel = Constant(radius * self.recurrent_kernel[...])  # of an orthogonal matrix it is 1

    def activate(self, z, carry):
        return {"candidate": jnp.tanh(z["candidate"])}

    def pointwise(self, z, carry):
        h = self.activate(z, carry)["candidate"]
        return h, h


class LayerNormLSTMCell(rnn_jax.LSTMCell):
    """LSTM with layer normalization (Ba, Kiros, Hinton 2016, arXiv 1607.06450): of x W, of h R, and of c."""

    names = ("input", "forget", "candidate", "output")
    input_gates = tuple(f"{name}_x" for name in names)
    recurrent_gates = tuple(f"{name}_h" for name in names)

    def __init__(self, in_features, hidden_features, *, rngs, **kwargs):
        super().__init__(in_features, hidden_features, bias_init="zeros", rngs=rngs, **kwargs)
        self.gain = nnx.Param(jnp.ones(hidden_features, self.param_dtype))

    def normalized(self, z):
        centered = z - jnp.mean(z, axis=-1, keepdims=True)
        return scale_by(centered * jax.lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5), self.gain[...])

    def activate(self, z, carry):
        return super().activate(
            {n: self.normalized(z[f"{n}_x"]) + self.normalized(z[f"{n}_h"]) for n in self.names}, carry
        )

    def pointwise(self, z, carry):
        gates = self.activate(z, carry)
        c = gates["forget"] * carry.c + gates["input"] * gates["candidate"]
        h = gates["output"] * jnp.tanh(self.normalized(c))
        return type(carry)(c, h), h


class CarryOfOscillators(NamedTuple):
    y: jax.Array
    z: jax.Array


class CoRNNCell(PointwiseCell):
    """coRNN (Rusch, Mishra 2021, arXiv 2010.00951): coupled oscillators y with velocities z; R reads both."""

    input_gates = recurrent_gates = ("force",)
    carry_type = CarryOfOscillators

    def __init__(self, in_features, hidden_features, *, dt=0.1, gamma=1.0, epsilon=1.0, rngs, **kwargs):
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)
        self.dt, self.gamma, self.epsilon = dt, gamma, epsilon

    def hidden(self, carry):
        return jnp.concatenate([carry.y, carry.z], axis=-1)

    def activate(self, z, carry):
        return {"force": jnp.tanh(z["force"])}

    def pointwise(self, z, carry):
        force = self.activate(z, carry)["force"]
        velocity = carry.z + self.dt * (force - self.gamma * carry.y - self.epsilon * carry.z)
        y = carry.y + self.dt * velocity
        return CarryOfOscillators(y, velocity), y


class PairCell(Cell):
    """A GRU whose output is a pair: the state, and the update gate."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        self.gru = rnn_jax.GRUCell(in_features, hidden_features, param_dtype=param_dtype, rngs=rngs)

    def gates(self, carry, x):
        return self.gru.gates(carry, x)

    def __call__(self, carry, x):
        new, y = self.gru(carry, x)
        return new, (y, self.gates(carry, x)["update"])


class DecayCell(Cell):
    """Reads a pair {"dt", "x"} and decays its state over the interval dt before each input (as Che et al. 2018)."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        self.rate = nnx.Param(jnp.full(hidden_features, 0.5, param_dtype))
        self.gru = rnn_jax.GRUCell(in_features, hidden_features, param_dtype=param_dtype, rngs=rngs)

    def decayed(self, carry, x):
        return carry * jnp.exp(-scale_by(jnp.broadcast_to(x["dt"][..., None], carry.shape), self.rate[...] ** 2))

    def gates(self, carry, x):
        return self.gru.gates(self.decayed(carry, x), x["x"])

    def __call__(self, carry, x):
        return self.gru(self.decayed(carry, x), x["x"])

    @property
    def num_feature_axes(self):
        return {"dt": 0, "x": 1}


class MatrixCell(Cell):
    """A matrix memory and a counter: S' = f S + v k^T (as in fast weights), read by q; declared by `carry_spec`."""

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        super().__init__(in_features, hidden_features, dtype=None, param_dtype=param_dtype)
        self.kernel = draw_kernel("lecun_normal", in_features, hidden_features, 3, dtype=param_dtype, rngs=rngs)
        self.decay = nnx.Param(jnp.ones(hidden_features, param_dtype))

    def carry_spec(self):
        size = self.hidden_features
        return {
            "memory": jax.ShapeDtypeStruct((size, size), self.param_dtype),
            "steps": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def gates(self, carry, x):
        ones = jnp.ones((*carry["steps"].shape, self.hidden_features), self.param_dtype)
        return {"forget": jax.nn.sigmoid(scale_by(ones, self.decay[...]))}

    def __call__(self, carry, x):
        q, k, v = jnp.split(self.dense(x, self.kernel[...]), 3, axis=-1)
        forget = self.gates(carry, x)["forget"]
        memory = carry["memory"] * forget[..., None, :] + v[..., :, None] * jnp.tanh(k)[..., None, :]
        y = jnp.einsum("...vk,...k->...v", memory, jnp.tanh(q)) / (1.0 + carry["steps"][..., None].astype(q.dtype))
        return {"memory": memory, "steps": carry["steps"] + 1}, self.as_output(y, x)
