"""What a model may keep beside its parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.models.calling import init_variables, train_logits
from cifar_flax.models.check import check_model


class Net(nn.Module):
    """A dense layer; ``watched`` tells whether its output can be looked at."""

    watched: bool = True
    memory: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(3)(x.reshape(len(x), -1))
        if self.watched:
            x = self.perturb("output", x)
            self.sow("intermediates", "output", x)
        if self.memory:
            self.variable("memory", "last", lambda: jnp.zeros_like(x))
        return x


def test_what_sow_and_perturb_make_is_no_variable():
    images = jax.random.normal(jax.random.key(1), (5, 4, 4, 2))
    outputs = []
    for net in (Net(), Net(watched=False)):
        check_model(net, (4, 4, 2), 3)
        variables = init_variables(net, jax.random.key(0), images)
        assert set(variables) == {"params", "batch_stats"}
        key = jax.random.key(2)
        logits, collections = train_logits(net, variables, images[:2], key)
        assert set(collections) == {"batch_stats"}
        outputs.append(logits)
    np.testing.assert_array_equal(*outputs)


def test_a_variable_that_depends_on_the_number_of_images_is_named():
    words = r"variable \['memory'\]\['last'\] is \[1, 3\] for one image and \[2, 3\]"
    with pytest.raises(UserError, match=words):
        check_model(Net(memory=True), (4, 4, 2), 3)
