"""The networks of `rnn_jax.models` once more, by torch, on packed sequences, and what holds ours to them."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_jax.models import LanguageModel, SequenceClassifier
from tests import reference

B, T, V, E, H, C = 4, 6, 7, 3, 5, 4
LENGTHS = np.array([4, 6, 1, 2])
LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def draw_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def with_arrays(model, arrays):
    """Returns the model with each parameter replaced by the array of its path, `rnn/cell/kernel`."""
    arrays = dict(arrays)

    def replace(path, old):
        new = arrays.pop(name_of(path))
        assert new.shape == old.shape, (name_of(path), new.shape, old.shape)
        return jax.device_put(new.astype(old.dtype))

    model = jax.tree_util.tree_map_with_path(replace, model)
    assert not arrays, f"no such parameters: {list(arrays)}"
    return model


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def check_grads(grads, expected, tolerance):
    grads = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        assert np.any(expected[name]), name
        assert reference.relative_error(grad, expected[name]) <= tolerance, name


def recurrent_arrays(kind, rnn, *, gradients=False):
    """Returns the parameters of a torch.nn layer by their path in ours."""
    arrays = {}
    for k in range(rnn.num_layers):
        layer = f"rnn/layers/{k}" if rnn.num_layers > 1 else "rnn"
        for suffix, direction in (("", "forward_rnn"), ("_reverse", "backward_rnn"))[: 1 + rnn.bidirectional]:
            cell = f"{layer}/{direction}/cell" if rnn.bidirectional else f"{layer}/cell"
            mapped = reference.from_torch(kind, rnn, f"_l{k}{suffix}", gradients=gradients)
            arrays |= {f"{cell}/{name}": array for name, array in mapped.items()}
    return arrays


def value(parameter, gradients):
    return (parameter.grad if gradients else parameter.detach()).numpy()


class Classifier(torch.nn.Module):
    """Embedding, packed layers, a pool over true steps (or none), linear head."""

    def __init__(self, kind, layers, bidirectional, pool):
        super().__init__()
        features = H * (2 if bidirectional else 1)
        self.kind, self.pool = kind, pool
        self.embedding = torch.nn.Embedding(V, E)
        self.rnn = LAYERS[kind](E, H, layers, batch_first=True, bidirectional=bidirectional)
        self.projection, self.query = torch.nn.Linear(features, features), torch.nn.Linear(features, 1, bias=False)
        self.head = torch.nn.Linear(features, C)

    def forward(self, tokens):
        packed = pack_padded_sequence(self.embedding(tokens), LENGTHS, batch_first=True, enforce_sorted=False)
        packed, final = self.rnn(packed)
        ys, lengths = pad_packed_sequence(packed, batch_first=True, total_length=T)
        beyond = (torch.arange(T)[None] >= lengths[:, None])[..., None]
        if self.pool is None:
            return self.head(ys).masked_fill(beyond, 0.0)
        if self.pool == "last":
            final = final[0] if self.kind == "lstm" else final
            pooled = torch.cat([final[-2], final[-1]], dim=-1) if self.rnn.bidirectional else final[-1]
        elif self.pool == "mean":
            pooled = ys.sum(dim=1) / lengths[:, None]
        elif self.pool == "max":
            pooled = ys.masked_fill(beyond, -torch.inf).amax(dim=1)
        else:
            scores = self.query(torch.tanh(self.projection(ys))).masked_fill(beyond, -torch.inf)
            pooled = (torch.softmax(scores, dim=1) * ys).sum(dim=1)
        return self.head(pooled)

    def arrays(self, *, gradients=False):
        arrays = recurrent_arrays(self.kind, self.rnn, gradients=gradients)
        arrays["embedding/embedding"] = value(self.embedding.weight, gradients)
        arrays |= {"head/kernel": value(self.head.weight, gradients).T, "head/bias": value(self.head.bias, gradients)}
        if self.pool == "attention":
            arrays |= {
                "attention/projection/kernel": value(self.projection.weight, gradients).T,
                "attention/projection/bias": value(self.projection.bias, gradients),
                "attention/query/kernel": value(self.query.weight, gradients).T,
            }
        return arrays


def check_classifier(kind, dtype, tolerance, *, layers, bidirectional, pool=None, per_step=False):
    """Asserts that torch's classifier and ours agree in their answers, and in the gradient of every parameter."""
    torch.manual_seed(0)
    theirs = Classifier(kind, layers, bidirectional, pool).to(getattr(torch, dtype))
    tokens = draw_tokens(B, T)
    cotangent = np.random.default_rng(1).normal(size=(B, T, C) if per_step else (B, C)).astype(dtype)

    expected = theirs(torch.tensor(tokens))
    (expected * torch.tensor(cotangent)).sum().backward()

    def build():
        return SequenceClassifier(
            kind, V, H, C, emb_size=E, layers=layers, bidirectional=bidirectional, pool=pool, per_step=per_step,
            param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0),
        )  # fmt: skip

    model = with_arrays(jax.eval_shape(build), theirs.arrays())

    def loss(model):
        answers = model(tokens, LENGTHS)
        return jnp.sum(answers * cotangent), answers

    (_, answers), grads = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))(model)
    reference.assert_close(answers, expected.detach().numpy(), tolerance)
    check_grads(grads, theirs.arrays(gradients=True), tolerance)


class Language(torch.nn.Module):
    """Embedding, layers, and a head that shares the matrix of the embedding or has its own."""

    def __init__(self, kind, layers, tie):
        super().__init__()
        self.kind = kind
        self.embedding = torch.nn.Embedding(V, H)
        self.rnn = LAYERS[kind](H, H, layers, batch_first=True)
        self.head = torch.nn.Linear(H, V)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens, carry):
        ys, carry = self.rnn(self.embedding(tokens), carry)
        return self.head(ys), carry

    def arrays(self, *, gradients=False):
        arrays = recurrent_arrays(self.kind, self.rnn, gradients=gradients)
        arrays["embedding/embedding"] = value(self.embedding.weight, gradients)
        bias = value(self.head.bias, gradients)
        if self.head.weight is self.embedding.weight:
            return arrays | {"head_bias": bias}
        return arrays | {"head/kernel": value(self.head.weight, gradients).T, "head/bias": bias}


def check_language_model(kind, layers, tie, pieces=3, tolerance=1e-10):
    """Asserts that both give the logits and gradients of a text in pieces, by back-propagation truncated at each."""
    torch.manual_seed(0)
    theirs = Language(kind, layers, tie).double()
    tokens = draw_tokens(pieces, B, T)
    cotangents = np.random.default_rng(1).normal(size=(pieces, B, T, V))

    carry, expected = None, []
    for piece, cotangent in zip(tokens, cotangents, strict=True):
        logits, carry = theirs(torch.tensor(piece), carry)
        carry = tuple(part.detach() for part in carry) if kind == "lstm" else carry.detach()
        (logits * torch.tensor(cotangent)).sum().backward()
        expected.append(logits.detach().numpy())

    def build():
        return LanguageModel(kind, V, H, H, layers=layers, tie=tie, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    model = with_arrays(jax.eval_shape(build), theirs.arrays())

    def loss(model):
        carry, total, all_logits = model.initialize_carry((B,)), 0.0, []
        for piece, cotangent in zip(tokens, cotangents, strict=True):
            carry, logits = model(piece, carry=jax.lax.stop_gradient(carry), return_carry=True)
            total = total + jnp.sum(logits * cotangent)
            all_logits.append(logits)
        return total, all_logits

    (_, actual), grads = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))(model)
    reference.assert_close(actual, expected, tolerance)
    check_grads(grads, theirs.arrays(gradients=True), tolerance)
