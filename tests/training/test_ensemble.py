"""Functions mapped over members: each member as if it were alone, on one device and on two."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax.training import ensemble
from rnn_jax.training.ensemble import devices_for, over_members
from rnn_jax.unroll import batch_mesh
from rnn_jax.unroll.sharded import over_batch
from tests.experiments.command import ROOT, fork

needs_two_cpu_devices = pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() < 2, reason="needs two CPU devices"
)


def one_step(weights, batch_NF):
    """Weights and loss after one step of gradient descent, a program with a loop of its own."""

    def loss_fn(weights):
        y_N, _ = jax.lax.scan(lambda y_N, x_N: (jnp.tanh(weights["w"] * y_N + x_N), None), batch_NF[:, 0], batch_NF.T)
        return jnp.mean(y_N**2)

    loss, grads = jax.value_and_grad(loss_fn)(weights)
    return jax.tree.map(lambda w, g: w - g, weights, grads), loss


@pytest.mark.parametrize(
    ("members", "devices"),
    [(3, 1), pytest.param(3, 2, marks=needs_two_cpu_devices), pytest.param(4, 2, marks=needs_two_cpu_devices)],
)
def test_a_member_is_its_own_run(members, devices, monkeypatch):
    monkeypatch.setattr(ensemble, "devices_for", lambda members, available: devices)
    batches_SNF = np.random.default_rng(0).normal(size=(members, 4, 5))
    weights_S = np.linspace(0.5, 2, members)
    together, step = {"w": jnp.asarray(weights_S)}, over_members(one_step, donate_argnums=(0,))
    for _ in range(2):
        before = together
        together, loss_S = step(together, batches_SNF)
    assert before["w"].is_deleted()
    assert len(loss_S.sharding.device_set) == devices
    assert loss_S.shape == (members,)
    for k in range(members):
        alone = {"w": jnp.asarray(weights_S[k])}
        for _ in range(2):
            alone, loss = jax.jit(one_step)(alone, batches_SNF[k])
        np.testing.assert_allclose([together["w"][k], loss_S[k]], [alone["w"], loss], rtol=1e-12)


def test_what_all_members_share_has_no_member_axis():
    xs_SN, ys_N = jnp.arange(6.0).reshape(3, 2), np.arange(2.0)
    np.testing.assert_array_equal(over_members(jnp.add, in_axes=(0, None))(xs_SN, ys_N), xs_SN + ys_N[None])


@pytest.mark.parametrize(
    ("members", "available", "devices"), [(1, 8, 1), (4, 1, 1), (5, 2, 2), (5, 4, 3), (6, 4, 3), (8, 4, 4), (3, 64, 3)]
)
def test_no_device_is_used_that_would_save_no_time(members, available, devices):
    assert devices_for(members, available) == devices


@needs_two_cpu_devices
def test_a_member_on_a_device_of_its_own_is_not_spread_again():
    def run(*args):
        return args

    def function(carry_BH):
        spread.append(over_batch(run, carry_BH, carry_BH.shape[:1]) is not run)
        return carry_BH + 1

    carries_SBH, spread = jnp.zeros((2, 2, 3)), []
    assert len(over_members(function)(carries_SBH).sharding.device_set) == 2
    assert spread == [False]
    with jax.set_mesh(batch_mesh(2)):  # the caller's mesh comes first
        np.testing.assert_array_equal(over_members(function)(carries_SBH), carries_SBH + 1)
    assert spread == [False, True]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_only_a_cpu_computes_one_member_after_another(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    program = str(jax.make_jaxpr(over_members(jnp.sin))(jnp.zeros((3, 2))))
    assert ("scan" in program) == (backend == "cpu")


def test_arguments_without_one_number_of_members_are_refused():
    for args in ((jnp.zeros(2), jnp.zeros(3)), (jnp.zeros(2), jnp.zeros(()))):
        with pytest.raises(ValueError, match=r"the arrays of an ensemble have \[.*\] members; allowed: one number"):
            over_members(jnp.add)(*args)
    with pytest.raises(ValueError, match=r"in_axes=\(0,\) is not for 2 arguments; allowed: an entry for each"):
        over_members(jnp.add, in_axes=(0,))(jnp.zeros(2), jnp.zeros(2))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system that tells the cores of a process")
def test_cores_become_devices_but_no_more_than_there_are_members():
    program = (
        "import jax, sys; jax.config.update('jax_platforms', 'cpu');"
        "from rnn_jax.training.ensemble import use_cores; use_cores({}); sys.exit(jax.device_count())"
    )
    for members, expected in ((64, len(os.sched_getaffinity(0))), (1, 1)):
        process = fork(exec, program.format(members))
        process.join(100)
        assert process.exitcode == min(expected, 64)
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "3"}  # which JAX reads as it starts
    done = subprocess.run([sys.executable, "-c", program.format(64)], cwd=ROOT, env=environment, timeout=100)
    assert done.returncode == 3
