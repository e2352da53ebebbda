"""Grid LSTM as the paper writes it, in loops over single places of the grid: nothing of `rnn_jax` but its parameters.

Kalchbrenner, Danihelka, Graves 2015, arXiv 1507.01526, equations 1 to 4. Vectors are `[H]`, of one example. `xp` is
NumPy, or `jax.numpy` where a gradient is asked for.
"""

import itertools

import numpy as np


def lstm(H, m, W, b, gate_inside, xp):
    """Equation 1; W is `[len(H), 4 H]`, columns u, f, c, o."""

    def sigma(z):
        return 1 / (1 + xp.exp(-z))

    W_u, W_f, W_c, W_o = xp.split(W, 4, axis=1)
    b_u, b_f, b_c, b_o = xp.split(b, 4)
    g_u, g_f, g_o = sigma(W_u.T @ H + b_u), sigma(W_f.T @ H + b_f), sigma(W_o.T @ H + b_o)
    g_c = xp.tanh(W_c.T @ H + b_c)
    m_new = g_f * m + g_u * g_c
    return (xp.tanh(g_o * m_new) if gate_inside else g_o * xp.tanh(m_new)), m_new


def block(hs, ms, block, xp=np):
    """Equations 2 to 4: N incoming hidden vectors and memories to N outgoing ones."""
    N = len(hs)
    weights = [(np.asarray(kernel[...]), np.asarray(bias[...])) for kernel, bias in zip(block.kernels, block.biases)]
    weights = weights * N if len(weights) == 1 else weights
    hs_new, ms_new = [None] * N, [None] * N

    def transform(k, H):
        W, b = weights[k]
        if block.transforms[k] == "lstm":
            hs_new[k], ms_new[k] = lstm(H, ms[k], W, b, block.gate_inside, xp)
        else:
            alpha = {"tanh": xp.tanh, "identity": lambda z: z}[block.transforms[k]]
            hs_new[k], ms_new[k] = alpha(W.T @ H + b), ms[k]

    for k in range(N):
        if k not in block.priority:
            transform(k, xp.concatenate(hs))
    H_new = xp.concatenate([hs[k] if k in block.priority else hs_new[k] for k in range(N)])
    for k in block.priority:
        transform(k, H_new)
    return hs_new, ms_new


def grid(network, xs, eps=None, xp=np):
    """Runs a `GridLSTM` place by place.

    Args:
      network: the module.
      xs: `[*axes, F]`, one example.
      eps: for each level and dimension `(m, h)`, `[*axes, H]` each: what is added to the outgoing state.
      xp: numpy or jax.numpy.

    Returns:
      by place, h of depth at the top.
    """
    sizes = xs.shape[:-1]
    kernel, bias = np.asarray(network.kernel[...]), np.asarray(network.bias[...])
    size = network.hidden_features
    zero = np.zeros(size)
    depth = {}
    for place in itertools.product(*map(range, sizes)):
        z = xs[place] @ kernel + bias
        depth[place] = (z[size:], z[:size])
    for level in range(network.depth):
        states = {}
        for place in itertools.product(*map(range, sizes)):
            incoming = []
            for axis in range(len(sizes)):
                before = (*place[:axis], place[axis] - 1, *place[axis + 1 :])
                incoming.append(states[before][axis] if before in states else (zero, zero))
            incoming.append(depth[place])
            weights = network.blocks[level] if len(network.blocks) > 1 else network.blocks[0]
            hs, ms = block([h for h, _ in incoming], [m for _, m in incoming], weights, xp)
            if eps is not None:
                hs = [h + eps[level][k][1][place] for k, h in enumerate(hs)]
                ms = [m + eps[level][k][0][place] for k, m in enumerate(ms)]
            states[place] = list(zip(hs, ms))
        depth = {place: outgoing[-1] for place, outgoing in states.items()}
    return {place: h for place, (h, _) in depth.items()}
