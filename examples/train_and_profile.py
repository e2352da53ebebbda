"""Trains a GRU on handwritten digits read row by row, and sees the gradient flow in every update.

python -m examples.train_and_profile
"""

import jax
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.training.optimizers import make_optimizer
from rnn_jax.training.step import train_step

task = tasks.make_task("digits", rows=True, blanks=16)
model = SequenceClassifier("gru(update_bias=1)", task.in_features, 32, task.out_features, rngs=nnx.Rngs(0))
optimizer = make_optimizer("adam", 5e-3, clip=1.0)
opt_state = optimizer.init(model)
update = jax.jit(lambda model, opt_state, batch: train_step(optimizer, task.loss, model, opt_state, batch))

for step, batch in zip(range(101), tasks.batches(task.train, batch_size=32, seed=0)):
    model, opt_state, profile = update(model, opt_state, batch)
    if step % 25 == 0:
        log10_norm = profile.log10_norm["rnn"]  # [time]
        left = log10_norm[0] - log10_norm.max()
        print(
            f"update {step:3}: loss {profile.loss:.3f}, 10^{left:.1f} of the largest gradient is left at the first row"
        )
