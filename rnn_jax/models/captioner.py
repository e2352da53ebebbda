"""Show, attend and tell: a network that looks at an image and writes what is on it, word by word.

References:
  Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio 2015, "Show, attend and tell: neural image caption
  generation with visual attention", arXiv 1502.03044.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import asks_for, check_sizes
from rnn_jax.cell import step as cell_step
from rnn_jax.layers import RNN, check_dropout, dropout
from rnn_jax.models.decoding import greedy as greedy_answer
from rnn_jax.models.decoding import shifted
from rnn_jax.models.embedding import embed, make_embedding
from rnn_jax.models.pooling import at_least_float32, steps_within
from rnn_jax.models.spatial_attention import Annotations, Glimpse, SpatialAttentionCell

Array = jax.Array
Carry = Any

_GRID = 8  # places in a row that an image is brought down to, about


class ConvolutionalEncoder(nnx.Module):
    """Convolutions of 3 x 3, each followed by layer normalization of the channels and a ReLU: a grid of D features.

    Of stride 2 until a row has 8 places or fewer, with twice the channels each time, then one of stride 1. Each place
    thus sees little beyond itself (of 32 columns, 15 in a row for the 4 of the grid), and maps show what was read.

    Args:
      columns, channels: of the images.
      features: D.
      dtype, param_dtype: as in `flax.nnx.Conv`.
      rngs: draws the parameters.
    """

    def __init__(self, columns: int, channels: int, features: int, *, rngs: nnx.Rngs, **dtypes: Any):
        halvings = max(0, math.ceil(math.log2(columns / _GRID)))
        sizes = [max(1, features >> k) for k in reversed(range(halvings))] + [features]
        convolutions, norms = [], []
        for k, size in enumerate(sizes):
            strides = (2, 2) if k < halvings else (1, 1)
            convolutions.append(nnx.Conv(channels, size, (3, 3), strides=strides, rngs=rngs, **dtypes))
            norms.append(nnx.LayerNorm(size, rngs=rngs, **dtypes))
            channels = size
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)

    def __call__(self, images: Array) -> Array:
        """Returns the annotation vectors of images `[*batch, rows, columns, channels]`: `[*batch, L, D]`."""
        for convolution, norm in zip(self.convolutions, self.norms):
            images = jax.nn.relu(norm(convolution(images)))
        return images.reshape(*images.shape[:-3], -1, images.shape[-1])


class Captioner(nnx.Module):
    r"""A convolutional encoder, and a decoder that looks at another part of the image for each word (Xu et al. 2015).

    The decoder is a `SpatialAttentionCell` around any cell: its equations stand there. Around it:

    .. math::
        c_0 = \tanh(f_{init,c}(\tfrac{1}{L} \sum_i a_i)), \qquad h_0 = \tanh(f_{init,h}(\tfrac{1}{L} \sum_i a_i)) \\
        p(y_t \mid a, y_{<t}) = \mathrm{softmax}(L_o (E y_{t-1} + L_h h_t + L_z z_t))

    where every floating-point part of the carry has a linear f_init of its own. A caption begins after the token `END`
    and ends with it.

    **Soft attention** is trained with the caption's doubly stochastic penalty,

    .. math:: \lambda \sum_i \Bigl(1 - \sum_t \alpha_{ti}\Bigr)^2

    over the true steps t. **Hard attention** draws one place s_t at each step in training, and has, beside the same
    penalty, a term of value 0 whose gradient is the paper's estimator (REINFORCE):

    .. math::
        -\lambda_r \sum_t (R_t - b_t)\, \nabla \log \alpha_{t s_t} - \lambda_e \nabla H[\alpha_t], \qquad
        R_t = \sum_{t' \ge t} \log p(y_{t'} \mid a_{s_{\le t'}}, y_{<t'})

    With probability 1/2 an image is read by the expectation in the place of a draw, as in the paper, and without a key
    every one is: the hard model is trained to be used so, too. Where we differ: R_t leaves out the words before step t,
    on which s_t has no influence; b_t is the mean of R_t over the other captions of the batch that have a step t, where
    the paper has a moving average (it needs no state, and leaves the estimator unbiased). The paper chose lambda_r by
    cross-validation: at 1 the term is the gradient of the expected log-likelihood, but noisy; 0.1 learns faster here.

    The loss of a task is a mean over tokens, the paper's a sum over a caption: both terms are divided by the mean
    number of tokens, so that lambda means what it means in the paper.

    The encoder is trained together with the decoder, where the paper has a fixed VGG network; for features of a large
    encoder, `in_features` is their number D, and there are no convolutions.

    Args:
      cell: of the decoder: a name, as `rnn_jax.make_cell` takes, of one feature axis.
      in_features: columns and channels of the images; or D of annotation vectors that are given.
      out_features: V, how many tokens captions are made of.
      emb_size: E of the embedding of tokens.
      hidden_features: H of the decoder, and D of the encoder.
      hard: whether the attention is hard.
      doubly_stochastic: lambda, 0 or more.
      reinforce_weight, entropy_weight: lambda_r and lambda_e of hard attention, 0 or more.
      expected_rate: of hard attention, the share of images that are read by the expectation in training.
      dropout: a rate, 0 to below 1, before L_o, for calls that are given a `key`.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell; `dtype` and `param_dtype` are those of all other parts, too.

    Raises:
      ValueError: if a size is below 1, or a rate or weight out of range; or as `SpatialAttentionCell`.
    """

    def __init__(
        self,
        cell: str,
        in_features: int | tuple[int, ...],
        out_features: int,
        emb_size: int,
        hidden_features: int,
        *,
        hard: bool = False,
        doubly_stochastic: float = 1.0,
        reinforce_weight: float = 0.1,
        entropy_weight: float = 0.002,
        expected_rate: float = 0.5,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        check_sizes(out_features=out_features, emb_size=emb_size, hidden_features=hidden_features)
        for name, weight in (
            ("doubly_stochastic", doubly_stochastic),
            ("reinforce_weight", reinforce_weight),
            ("entropy_weight", entropy_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}={weight} is no weight of a penalty; allowed: a finite number, 0 or more.")
        if not 0 <= expected_rate <= 1:
            raise ValueError(f"expected_rate={expected_rate} is no rate; allowed: 0 to 1.")
        dtypes = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.in_features = in_features
        self.hard, self.doubly_stochastic = hard, doubly_stochastic
        self.reinforce_weight, self.entropy_weight, self.expected_rate = reinforce_weight, entropy_weight, expected_rate
        self.dropout = check_dropout(dropout)
        if isinstance(in_features, int):
            self.encoder, value_features = nnx.data(None), in_features
        else:
            columns, channels = in_features
            self.encoder = ConvolutionalEncoder(columns, channels, hidden_features, rngs=rngs, **dtypes)
            value_features = hidden_features
        self.answer_embedding = make_embedding(out_features, emb_size, rngs=rngs, **dtypes)
        attending = SpatialAttentionCell(
            emb_size, hidden_features, cell=cell, value_features=value_features, rngs=rngs, **kwargs
        )
        self.decoder = RNN(attending)
        self.initial = nnx.List(
            nnx.Linear(value_features, math.prod(part.shape), rngs=rngs, **dtypes)
            if jnp.issubdtype(part.dtype, jnp.floating)
            else None
            for part in jax.tree.leaves(attending.carry_spec())
        )
        x = jax.ShapeDtypeStruct((emb_size,), kwargs.get("param_dtype", jnp.float32))
        glimpse = jax.eval_shape(
            lambda x: attending(
                attending.initialize_carry((emb_size,)),
                x,
                context=attending.annotations(jnp.zeros((1, value_features), x.dtype)),
            )[1],
            x,
        )
        self.from_h = nnx.Linear(glimpse.h.shape[-1], emb_size, rngs=rngs, **dtypes)
        self.from_z = nnx.Linear(value_features, emb_size, use_bias=False, rngs=rngs, **dtypes)
        self.head = nnx.Linear(emb_size, out_features, rngs=rngs, **dtypes)

    def __call__(
        self, inputs: Array, lengths: None = None, *, answer: Array, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns the logits of each word of the captions, given the true ones before it: teacher forcing.

        Args:
          inputs: images `[B, rows, columns, channels]`, or annotation vectors `[B, L, D]`.
          lengths: None: all places of an image are true ones.
          answer: captions, int32 `[B, U]`, `END` last and a negative number behind.
          key: of `jax.random`, for dropout, hard attention and cells that ask for one; None is deterministic.

        Returns:
          Logits `[B, U, V]`, 0 behind the end of a caption; and the penalties `[B]`.

        Raises:
          ValueError: for inputs of another shape, or with lengths.
        """
        answer = jnp.asarray(answer)
        decoder_key = head_key = sampled = None
        if key is not None:
            decoder_key, head_key, coin_key = jax.random.split(key, 3)
            if self.hard:
                sampled = jax.random.bernoulli(coin_key, jnp.float32(1 - self.expected_rate), answer.shape[:-1])
            elif not asks_for(self._cell.cell, "key"):
                decoder_key = None  # nothing is drawn
        carry, context = self._look(inputs, lengths, sampled)
        tokens = jnp.sum(answer >= 0, axis=-1, dtype=jnp.int32)
        xs = embed(self.answer_embedding, shifted(answer))
        glimpses: Glimpse = self.decoder(xs, initial_carry=carry, context=context, seq_lengths=tokens, key=decoder_key)
        true_steps = steps_within(tokens, answer.shape[-1])
        logits = self._logits(xs, glimpses, head_key)
        logits = jnp.where(true_steps, logits, jnp.zeros_like(logits))
        penalty = self.doubly_stochastic * doubly_stochastic_penalty(glimpses.weights)
        if sampled is not None:
            log_p = jax.nn.log_softmax(at_least_float32(logits), axis=-1)
            asked = jnp.maximum(answer, 0)[..., None]
            rewards = jnp.take_along_axis(log_p, asked, axis=-1)[..., 0]
            estimate = reinforce(jnp.where(true_steps[..., 0], rewards, 0), glimpses.log_p, true_steps[..., 0])
            penalty += self.reinforce_weight * estimate
            entropy = jnp.sum(_entropy(glimpses.weights), axis=-1)
            penalty -= self.entropy_weight * (entropy - jax.lax.stop_gradient(entropy))
        of_loss = answer.shape[0] / jnp.maximum(jnp.sum(tokens), 1).astype(penalty.dtype)
        return logits, penalty * of_loss

    def start(self, inputs: Array, lengths: None = None) -> tuple[Carry, Annotations]:
        """Encodes images. Returns what `next` goes on from: the carry of the decoder, and the context.

        Args:
          inputs, lengths: as `__call__`.
        """
        return self._look(inputs, lengths, None)

    def next(self, carry: Carry, tokens: Array, context: Annotations) -> tuple[Carry, Array, Array]:
        """Runs one step of the decoder, deterministic.

        Args:
          carry: as `start` or `next` returned it.
          tokens: the word before, int32 `[B]`: `END` at first.
          context: as `start` returned it.

        Returns:
          The carry, logits `[B, V]`, and the weights alpha over the places of the image, `[B, L]`.
        """
        x = self.answer_embedding(tokens)
        carry, glimpse = cell_step(self._cell, carry, x, context=context)
        return carry, self._logits(x, glimpse, None), glimpse.weights

    def greedy(self, inputs: Array, lengths: None, steps: int) -> Array:
        """Returns the captions that take the likeliest word at each step; as `rnn_jax.models.decoding.greedy`."""
        return greedy_answer(self, inputs, lengths, steps)

    @property
    def _cell(self) -> SpatialAttentionCell:
        cell = self.decoder.cell
        assert isinstance(cell, SpatialAttentionCell)
        return cell

    def _look(self, inputs: Array, lengths: None, sampled: Array | None) -> tuple[Carry, Annotations]:
        """Returns the first carry and the context."""
        inputs = jnp.asarray(inputs)
        features = (self.in_features,) if isinstance(self.in_features, int) else self.in_features
        if lengths is not None or inputs.ndim != 2 + len(features) or inputs.shape[2:] != features:
            raise ValueError(
                f"inputs have shape {inputs.shape}{'' if lengths is None else ' and lengths'}; allowed:"
                f" [batch, {'places' if self.encoder is None else 'rows'}, {', '.join(map(str, features))}],"
                " without lengths."
            )
        values = inputs if self.encoder is None else self.encoder(inputs)
        cell = self._cell
        mean = jnp.mean(at_least_float32(values), axis=-2).astype(values.dtype)
        own = cell.initialize_carry((*values.shape[:-2], cell.in_features), self.decoder.carry_rngs())
        parts = [
            part if linear is None else jnp.tanh(linear(mean)).reshape(part.shape).astype(part.dtype)
            for linear, part in zip(self.initial, jax.tree.leaves(own), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(own), parts), cell.annotations(values, sampled)

    def _logits(self, x: Array, glimpse: Glimpse, key: Array | None) -> Array:
        deep = x + self.from_h(glimpse.h) + self.from_z(glimpse.z)
        return self.head(deep if key is None else dropout(deep, self.dropout, key))


def doubly_stochastic_penalty(weights: Array) -> Array:
    """Returns sum_i (1 - sum_t alpha_ti)^2 for weights `[*batch, U, L]`, which are 0 at padded steps: `[*batch]`."""
    return jnp.sum((1 - jnp.sum(weights, axis=-2)) ** 2, axis=-1)


def reinforce(rewards: Array, log_p: Array, true_steps: Array) -> Array:
    """Returns what is added to each loss to learn where to look: 0, with the gradient of the estimator; `[B]`.

    The gradient is that of -E[sum_t rewards_t] by way of the choices, with the mean over the other rows of the batch as
    the baseline. That by way of the rewards themselves is the loss's own.

    Args:
      rewards: log p of each word given the choices up to it, `[B, U]`, 0 at padded steps.
      log_p: of each choice, `[B, U]`; 0 where there was none.
      true_steps: bool `[B, U]`.

    References:
      Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
      Machine Learning 8.
    """
    to_come = jnp.flip(jnp.cumsum(jnp.flip(rewards, -1), axis=-1), -1)
    others = jnp.sum(true_steps, axis=0, keepdims=True, dtype=jnp.int32) - 1
    baseline = (jnp.sum(to_come, axis=0, keepdims=True) - to_come) / jnp.maximum(others, 1).astype(to_come.dtype)
    advantage = jax.lax.stop_gradient(jnp.where(true_steps, to_come - baseline, 0))
    return -jnp.sum(advantage * (log_p - jax.lax.stop_gradient(log_p)), axis=-1)


def _entropy(weights: Array) -> Array:
    """Returns the entropy of weights `[..., L]`, in nats; 0, with a gradient of 0, where they are all 0."""
    return -jnp.sum(weights * jnp.log(jnp.where(weights > 0, weights, 1)), axis=-1)
