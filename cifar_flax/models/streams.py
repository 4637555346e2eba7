"""The streams of random numbers: what each is for, and the key that it comes from."""

import enum

import jax


class Stream(enum.Enum):
    """A stream: the key that its key is derived from, its number there, its use.

    A stream's number is part of every result: another number gives other bits. The keys
    are those of ``jax.random.split`` of the first key, which counts from 0, too.
    """

    INIT = ("seed", 0, "initial values of the model")
    REPLICA = ("seed", 1, "training of the replica")
    SHUFFLE = ("replica", 0, "order of the images; one more key for each epoch")
    STEPS = ("replica", 1, "steps; one more key for each step")
    # The bits of FLIPS are those from which STEPS makes keys, not those of its steps.
    FLIPS = ("replica", 1, "epochs in which ``alternate`` mirrors an image")
    AUGMENT = ("step", 0, "crops and flips")
    MODEL = ("step", 1, "dropout")
    VARY = ("augment", 1, "contrast, brightness and cutout")
    FURTHER = ("augment", 2, "an augmentation of the user's own")
    LAYERS = ("model", 1, "streams of the model with names of their own")
    MIX = ("model", 2, "mixup and cutmix")
    LOSS = ("model", 3, "a loss of the user's own")

    def of(self, key: jax.Array) -> jax.Array:
        """Returns the key of this stream from the key that it is derived from."""
        return jax.random.fold_in(key, self.value[1])
