# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How different networks perform on CIFAR-10
#
# This notebook follows a lesson of 2018 from a fully connected network to residual networks. It uses
# JAX and `cifar_flax`. Run it from top to bottom; it needs no network. It uses CIFAR-10 if it is on this machine,
# otherwise a built-in data set of drawn figures called `shapes`. On CIFAR-10 it took 11 minutes on two CPU cores
# (AMD EPYC with AVX-512). The environment variables `LESSON_TRAIN_SIZE=2000` and `LESSON_VAL_SIZE=500` make it shorter.
#
# The outputs that are stored here come from CIFAR-10 after one JPEG encoding of its images. Every number
# says how many seeds it comes from. Each section ends with a question; click it to see an answer.

# %%
# %matplotlib inline
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import cifar_flax as cf
from cifar_flax.data.augment import normalise
from cifar_flax.runs.tables import mean_and_interval

SEEDS = (0, 1, 2)
WHERE = {
    "data_archive": os.environ.get("CIFAR10_ARCHIVE"),
    "archive_sha256": os.environ.get("CIFAR10_SHA256"),
    "train_size": int(os.environ.get("LESSON_TRAIN_SIZE", 45_000)),
    "val_size": int(os.environ.get("LESSON_VAL_SIZE", 5_000)),
}
FOLDER = os.environ.get("LESSON_RUNS", "runs/lesson")


# %% [markdown]
# ## 1. Look at the data
#
# An image is an array of 32 x 32 pixels with three colours. The first thing to do with a data set is to look
# at it.

# %%
dataset = cf.load_dataset(
    "auto", archive=WHERE["data_archive"], archive_sha256=WHERE["archive_sha256"]
)
splits = cf.split_dataset(dataset, WHERE["val_size"], WHERE["train_size"])
print(dataset.name, splits.train.images.shape, splits.train.images.dtype)
print("classes:", ", ".join(dataset.class_names))


def train(model, name=None, seeds=SEEDS, **settings):
    """Trains on these data with a few settings; with a name, it keeps the records."""
    settings = cf.Settings(model=model, seeds=seeds, **WHERE, **settings)
    return cf.run(settings, name and f"{FOLDER}/{name}", dataset=dataset)


# %%
cf.plot_images(dataset, cf.Augmentation())

# %% [markdown]
# The top row shows images of each class. The rows below show what the network sees in training: the image
# moves by up to four pixels, and half of the images are mirrored. The pixels outside the border repeat the
# image.
#
# Networks train best when their inputs have mean 0 and deviation 1. So we subtract the mean of the training images
# and divide by their deviation, for each colour. Here are the statistics of 5,000 images, and a batch after the
# normalisation:

# %%
pixels = splits.train.images[:5_000] / 255
print("mean", pixels.mean((0, 1, 2)), "deviation", pixels.std((0, 1, 2)))
batch = np.asarray(normalise(splits.train.images[:256], splits.mean, splits.std))
print(
    "a batch after normalisation: mean %.2f, deviation %.2f"
    % (batch.mean(), batch.std())
)

# %% [markdown]
# <details><summary>Question: why are the validation and test images not moved and mirrored?</summary>
# Augmentation makes training harder so that the network cannot memorise the images. Validation and test
# should measure how the network does on images as they are. (Averaging over several views of a test image
# does raise the accuracy. That is test-time augmentation, the setting <code>tta</code>.)</details>

# %% [markdown]
# ## 2. A fully connected network
#
# The simplest network forgets that pixels are neighbours: it takes 3072 numbers, has a layer of 40 units and
# an output for each class.

# %%
simplenet = cf.create_model("simplenet")
cf.Summary(simplenet)

# %% [markdown]
# <details><summary>Question: where do 122,880 of the 123,330 weights sit?</summary>
# In the first layer: 3072 inputs times 40 units. Every unit has a weight of its own for every pixel, so
# what it learns about one corner of the image tells it nothing about another.</details>

# %% [markdown]
# ## 3. Which learning rate?
#
# A range test trains while the learning rate rises from very small to very large, and watches the loss. At
# small rates the loss hardly moves; then it falls; then it breaks away. A good rate lies where it is lowest,
# before it breaks.

# %%
settings = cf.Settings(model="simplenet", seeds=(0, 1, 2, 3, 4), **WHERE)
found = cf.range_test(settings, dataset=dataset)
figure, axis = plt.subplots(figsize=(7, 4.5))
found.curves.plot(axis)
found

# %% [markdown]
# The lines are what different methods read off the same curves. Here `lowest` is the default; it averages
# the loss over an eighth of the steps.
#
# <details><summary>Question: the methods disagree by a factor of ten and more. What would you do?</summary>
# Train for a short time with each and compare, on the validation images. The page "Learning rates" of the
# documentation did so for seven networks.</details>

# %% [markdown]
# ## 4. A constant rate, then restarts
#
# The lesson trains at a constant rate first and then in cycles: within a cycle the rate falls along a
# cosine, and then it jumps up again (SGD with warm restarts).

# %%
first = train("simplenet", "simplenet")
display(cf.plot_lr(first), cf.plot_loss(first), first)

# %% [markdown]
# <details><summary>Question: why does the loss drop at the end of each cycle?</summary>
# With a small rate the steps are small, and the noise of the batches averages out. The network settles
# deeper into the valley in which it is.</details>

# %% [markdown]
# ## 5. Convolutions: fewer weights, more accuracy
#
# A convolution looks at 3 x 3 pixels at a time with the same weights everywhere. Work out the shapes by hand:
# without padding and with stride 2, 32 pixels become (32 - 3) // 2 + 1 = 15, then 7, then 3. The maximum over
# the whole image is left of each of the 80 channels.

# %%
cf.Summary(cf.create_model("convnet"))

# %%
second = train("convnet", "convnet")
second

# %% [markdown]
# 37,490 weights beat 123,330: what is learned in one place is used everywhere.
#
# The same network with padding, `convnet2`, does not throw away the border:

# %%
cf.Summary(cf.create_model("convnet2"))

# %% [markdown]
# <details><summary>Question: how many weights has a convolution from 20 to 40 channels?</summary>
# 3 x 3 x 20 x 40 + 40 = 7,240, one bias for each channel.</details>

# %% [markdown]
# ## 6. Too high a rate
#
# What happens at a rate that is too high? `steps.npz` has the loss of every step, so we can see the step at
# which training breaks.

# %%
broken = train("convnet2", lr=1.0, epochs=1)
losses = broken.steps.losses
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(losses.T)
axis.set(xlabel="step", ylabel="loss", ylim=(0, 8))
for seed, loss in zip(SEEDS, losses, strict=True):
    lost = np.flatnonzero(~np.isfinite(loss) | (loss > 1.5 * loss[0]))
    where = f"breaks away at step {lost[0]}" if len(lost) else "does not break away"
    print(
        f"seed {seed}: {where}; mean loss of the last 20 steps {np.mean(loss[-20:]):.3f}"
    )
broken

# %% [markdown]
# <details><summary>Question: a loss that stays near 2.303 means something special for ten classes. What?</summary>
# log(10) = 2.303: the network gives every class the same probability. Its units are dead; no gradient brings
# them back.</details>

# %% [markdown]
# ## 7. What goes on inside: activations
#
# Why do deep networks without normalisation need small rates? Watch the activations. This network has six
# convolutions. We measure mean and deviation of the output of each, after every few steps, without and with
# batch norm.


# %%
class Deep(nn.Module):
    """Six convolutions; the norm, if any, follows the ReLU as in the lesson."""

    num_classes: int = 10
    norm: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = images
        for width in (16, 16, 32, 32, 64, 64):
            x = nn.relu(
                nn.Conv(width, (3, 3), strides=2 if width != x.shape[-1] else 1)(x)
            )
            if self.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            self.sow("intermediates", "output", x)
        return nn.Dense(self.num_classes)(x.max((1, 2)))


def watch(norm, rate, steps=60, every=4, seed=0):
    """Losses, and the deviation of every layer's output, over the steps."""
    import optax

    model = Deep(norm=norm)
    count = 256 * steps
    images = normalise(splits.train.images[:count], splits.mean, splits.std)
    labels = jnp.asarray(splits.train.labels[:count])
    variables = model.init(jax.random.key(seed), images[:1], train=False)
    variables.pop("intermediates", None)
    tx = optax.sgd(rate, momentum=0.9)
    opt_state = tx.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, images, labels):
        def loss_fn(params):
            logits, updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), updated

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, updated), grads = gradient(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        outputs = updated["intermediates"]["output"]
        deviations = jnp.stack([x.std() for x in outputs])
        variables = {**variables, "params": params}
        if norm:
            variables["batch_stats"] = updated["batch_stats"]
        return variables, opt_state, loss, deviations

    losses, deviations = [], []
    for k in range(steps):
        part = slice(256 * k % len(images), 256 * k % len(images) + 256)
        variables, opt_state, loss, spread = step(
            variables, opt_state, images[part], labels[part]
        )
        losses.append(float(loss))
        deviations.append(np.asarray(spread))
    return np.array(losses), np.array(deviations)


figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey="row")
for column, norm in enumerate((False, True)):
    losses, deviations = watch(norm, rate=0.1)
    for layer in range(deviations.shape[1]):
        axes[0, column].plot(deviations[:, layer], label=f"layer {layer + 1}")
    axes[0, column].set(title="with batch norm" if norm else "without", yscale="log")
    axes[1, column].plot(losses, color="black")
    axes[1, column].set(xlabel="step", ylim=(0, 4))
axes[0, 0].set_ylabel("deviation of the output")
axes[1, 0].set_ylabel("loss")
axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1, 1))
figure.tight_layout()

# %% [markdown]
# Without normalisation, the deviations shrink with depth and then change by orders of magnitude when the network
# starts to learn. A step that suits one layer does not suit another. With batch norm, every layer gives outputs
# with deviation near 1, so one rate suits all layers. (The deviation of the last layer falls because its scale is
# learned: the classifier that follows wants smaller numbers.)
#
# <details><summary>Question: why does the loss without norm stay flat for so long?</summary>
# The signal shrinks from layer to layer, so the last layer sees nearly the same for every image, and the
# gradient that reaches the first layer is tiny.</details>

# %% [markdown]
# ## 8. Batch norm from scratch
#
# For each channel: subtract the mean over the batch and all positions, divide by the deviation, then scale and
# shift by learned numbers.


# %%
def batch_norm(x, scale, bias, epsilon=1e-5):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


from cifar_flax.layers import BatchNorm

x = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 8, 8, 5))
scale, bias = jnp.linspace(0.5, 1.5, 5), jnp.linspace(-1, 1, 5)
ours = BatchNorm()
variables = ours.init(jax.random.key(1), x, train=False)
variables = {**variables, "params": {"scale": scale, "bias": bias}}
theirs, updated = ours.apply(variables, x, train=True, mutable=["batch_stats"])
print("largest difference:", float(jnp.abs(theirs - batch_norm(x, scale, bias)).max()))
print("running mean after one batch:", updated["batch_stats"]["mean"])

# %% [markdown]
# The difference is the rounding of float32. The collection `batch_stats` holds moving averages of mean and
# variance: `0.9 * old + 0.1 * batch`. They are used when the network is evaluated, since a single image has no
# batch.
#
# <details><summary>Question: why is the running mean not yet 3?</summary>
# It starts at 0, and one batch moves it by a tenth of the way.</details>

# %% [markdown]
# ## 9. With batch norm: higher rates, better results

# %%
third = train("convbn", "convbn")
third

# %% [markdown]
# The lesson evaluates with the statistics of the last training batch instead of moving averages. Here that is
# `bn_momentum=0`. Does it matter?

# %%
last_batch = train("convbn", "convbn-last-batch", bn_momentum=0.0)
for name, one in {"moving averages:": third, "last batch alone:": last_batch}.items():
    print(f"{name:17}", np.round(100 * np.array(one.record.test_accuracy, float), 2))

# %% [markdown]
# <details><summary>Question: how would you find out whether the difference is more than chance?</summary>
# Compare the same seeds with each other, and compute an interval of the mean difference. Section 13 does
# that.</details>

# %% [markdown]
# ## 10. Freezing and fine-tuning
#
# A network that was trained on some classes is a good start for others. We train on the first five classes,
# and then fine-tune the network on a few hundred images of the other five. The batch norms can keep the
# statistics that they have (`bn_freeze`), or adapt. With fixed statistics nothing rescales what grows, so a network can
# diverge at a rate that suits the others: after a short training on 1,000 images, all three seeds did at 0.02 and none
# at 0.01, so the frozen norms get that. (At the default size, 0.02 also works, and gives 1.6 points more than 0.01.)


# %%
def only(labels_kept, train_images):
    """The data set with some of its classes, and with a limited number of training images."""
    parts = []
    for images, labels, limit in (
        (dataset.train_images, dataset.train_labels, train_images),
        (dataset.test_images, dataset.test_labels, None),
    ):
        kept = np.flatnonzero(np.isin(labels, labels_kept))[:limit]
        parts += [images[kept], (labels[kept] - min(labels_kept)).astype(np.int32)]
    names = [dataset.class_names[label] for label in labels_kept]
    return cf.make_dataset(
        f"{names[0]} to {names[-1]}", *parts, names, source=dataset.source
    )


few = int(os.environ.get("LESSON_FEW", 500))
before, after = only(range(5), WHERE["train_size"] // 2), only(range(5, 10), few)
common = {"val_size": 0, "seeds": SEEDS}
pretrained = cf.run(
    cf.Settings(model="convbn", **common), f"{FOLDER}/pretrained", dataset=before
)
tuned = {}
for name, extra in {
    "from scratch": {},
    "fine-tuned": {"init_from": f"{FOLDER}/pretrained"},
    "fine-tuned, norms frozen": {
        "init_from": f"{FOLDER}/pretrained",
        "bn_freeze": True,
        "lr": 0.01,
    },
    "only the last layer": {"init_from": f"{FOLDER}/pretrained", "freeze": "^(?!head)"},
}.items():
    short = {"lr": 0.02, "cycles": 1, "cycle_len": 20, "batch_size": 50}
    settings = cf.Settings(model="convbn", **{**short, **common, **extra})
    tuned[name] = cf.run(settings, dataset=after).record
for name, record in tuned.items():
    accuracy = mean_and_interval(record)
    print(f"{name:25} {accuracy} ({len(SEEDS)} seeds, {few} training images)")

# %% [markdown]
# <details><summary>Question: when would you freeze the norms?</summary>
# When the new images are few, or the batches small, so that their statistics are noisy, and the new images look
# like the old ones.</details>

# %% [markdown]
# ## 11. Deeper: is it better?
#
# The lesson's deep network has a second convolution in each stage. With the lesson's recipe it does worse than
# the shallow one. But it trains for four epochs and the other for six! At equal budgets:

# %%
budget = {"lr": 0.03, "cycles": 1, "cycle_len": 4}
shallow = train("convbn", "equal/convbn", **budget)
deep = train("convbn2", "equal/convbn2", **budget)
residual = train("resnet", "equal/resnet", **{**budget, "lr": 0.01})

# %% [markdown]
# ## 12. Residual networks
#
# A residual layer adds its input to its output: `x + f(x)`. If a layer is not needed, it can learn to do nothing,
# so more layers do no harm. That shows in long trainings; four epochs are short.

# %%
cf.Summary(cf.create_model("resnet"))

# %% [markdown]
# ## 13. A fair comparison
#
# The report reads the records of finished runs. It ranks one setting of each model, says what is shown and what
# is not, and how many seeds would be needed.

# %%
cf.report(f"{FOLDER}/equal")

# %% [markdown]
# <details><summary>Question: the report says "no difference is shown". Are the two networks equally good?</summary>
# No. It says that these seeds cannot tell. The report also says how many seeds would show half a
# point.</details>

# %% [markdown]
# ## 14. Outlook
#
# People measure this data set by 94 %. The network `airbench` reaches it on the original images with a handful of
# tricks, each of which is a setting that you can also give to your own network: a first layer made from the
# images' statistics, an initialisation near the identity, another optimizer, an average of the weights.
# `docs/results.md` shows what it reaches in how many minutes, and what each trick is worth.

# %%
cf.Summary(cf.create_model("airbench"))
