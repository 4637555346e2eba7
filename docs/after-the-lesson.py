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
# # After the lesson: the ideas since 2018
#
# The lesson ends where residual networks begin. This notebook goes on in the same manner: why depth alone stopped
# helping, what a shortcut does, what groups and depthwise convolutions save and what they cost, what attention needs,
# and whether a better network or a better recipe is worth more. Run it from top to bottom; it needs no network. It uses
# CIFAR-10 if it is on this machine, otherwise a built-in data set of drawn figures called `shapes`. On CIFAR-10 it
# took 64 minutes on two CPU cores (AMD EPYC with AVX2). The environment variables `LESSON_TRAIN_SIZE=2000` and
# `LESSON_VAL_SIZE=500` make it shorter.
#
# The trainings are short and the networks small, so the accuracies are far below what these networks can reach. The
# stored outputs come from CIFAR-10 after one JPEG encoding of its images, 20,000 training images, and three seeds.
# An interval after ± is a 95 % interval of the mean over seeds. Questions have hidden answers; click one to see it.

# %%
# %matplotlib inline
import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import cifar_flax as cf
from cifar_flax.data.augment import normalise
from cifar_flax.models.families.residual import ResidualNet
from cifar_flax.models.families.vit import ViT
from cifar_flax.runs.tables import mean_and_interval

TRAIN_SIZE = int(os.environ.get("LESSON_TRAIN_SIZE", 20_000))
SHORT = TRAIN_SIZE < 16_000
SEEDS = (0, 1) if SHORT else (0, 1, 2)
WHERE = {
    "data_archive": os.environ.get("CIFAR10_ARCHIVE"),
    "archive_sha256": os.environ.get("CIFAR10_SHA256"),
    "val_size": int(os.environ.get("LESSON_VAL_SIZE", 5_000)),
}
dataset = cf.load_dataset(
    "auto", archive=WHERE["data_archive"], archive_sha256=WHERE["archive_sha256"]
)
if SHORT:  # fewer test images, too
    dataset = cf.make_dataset(
        dataset.name,
        dataset.train_images,
        dataset.train_labels,
        dataset.test_images[:1_000],
        dataset.test_labels[:1_000],
        dataset.class_names,
        source=dataset.source,
    )
splits = cf.split_dataset(dataset, WHERE["val_size"], TRAIN_SIZE)
print(dataset.name, splits.train.images.shape)


def train(model, train_size=TRAIN_SIZE, **settings):
    """Trains a network, by its name or as a module, from each seed."""
    own = isinstance(model, nn.Module)
    named = {} if own else {"model": model}
    given = cf.Settings(
        seeds=SEEDS, train_size=train_size, **named, **WHERE, **settings
    )
    return cf.run(given, model=model if own else None, dataset=dataset)


def accuracy(run):
    """Mean test accuracy and half of its 95 % interval, in per cent."""
    record = run.record
    half = record.test_accuracy_ci95
    return 100 * record.test_accuracy_mean, None if half is None else 100 * half


# %% [markdown]
# ## 1. Deeper is not better
#
# Until about 2015, the way to a better network was more layers. Then it stopped: networks with more layers did
# worse, on the test images and on the training images, too, so they did not just memorise the images. Here is a
# plain network of 3 x 3 convolutions with batch norm, with 8 and with 26 layers. The same networks with a shortcut
# around every two convolutions are residual networks. All train for three epochs at the same rate. Bars are one
# deviation over the seeds on the left, and 95 % intervals on the right.


# %%
DEPTHS = (1, 4)  # blocks in each of three stages


def stack(blocks, residual):
    return ResidualNet(widths=(8, 16, 32), blocks=blocks, residual=residual)


deep = {}
for residual in (False, True):
    for blocks in DEPTHS:
        deep[residual, blocks] = train(
            stack(blocks, residual), lr=0.1, cycles=1, cycle_len=3
        )

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
layers = [6 * blocks + 2 for blocks in DEPTHS]
for residual, style in ((False, "o--"), (True, "o-")):
    name = "with shortcuts" if residual else "plain"
    runs = [deep[residual, blocks] for blocks in DEPTHS]
    last = [100 * np.array(run.metrics[-1].train_accuracy) for run in runs]
    axes[0].errorbar(
        layers, [a.mean() for a in last], [a.std(ddof=1) for a in last], fmt=style
    )
    means, halves = zip(*map(accuracy, runs), strict=True)
    axes[1].errorbar(layers, means, halves, fmt=style, label=name, capsize=3)
axes[0].set(xlabel="layers", ylabel="accuracy in %", title="training images")
axes[1].set(xlabel="layers", title="test images")
axes[1].legend()
figure.tight_layout()

# %%
for (residual, blocks), run in deep.items():
    kind = "with shortcuts" if residual else "plain"
    print(f"{6 * blocks + 2:3} layers, {kind:14}  {mean_and_interval(run.record)}")

# %% [markdown]
# With 26 layers, the plain network loses eight points on the training images, and as many on the test images. With
# shortcuts, depth does no harm; that it helps is not shown in three epochs.
#
# <details><summary>Question: a plain network of 26 layers can compute whatever one of 8 layers can, if the other
# layers pass on what they get. Why does it not find that?</summary>
# For a stack of convolutions, norms and ReLUs, passing on the input needs very special weights, and
# training starts far from them. With a shortcut it needs weights of 0, which are near.</details>
#
# ## 2. What the shortcut does
#
# The gradient reaches a layer through all the layers behind it. How large is the gradient of the loss by the output of
# each block in a network of 20 blocks that is not trained yet? There is no batch norm here, so that nothing rescales
# it.


# %%
class Chain(nn.Module):
    """Blocks of two convolutions of the same width, with or without shortcuts."""

    depth: int = 20
    residual: bool = False

    @nn.compact
    def __call__(self, x, probes):
        # Each output gets a probe of zeros: the gradient by it is that by the output.
        x = nn.Conv(16, (3, 3))(x)
        for k in range(self.depth):
            y = nn.Conv(16, (3, 3))(nn.relu(x))
            y = nn.Conv(16, (3, 3))(nn.relu(y))
            x = (x + y if self.residual else y) + probes[k]
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


def gradients_by_depth(residual, depth=20):
    """Root mean square of the gradient by each block's output, for each seed."""
    model = Chain(depth, residual)
    images = normalise(splits.train.images[:64], splits.mean, splits.std)
    labels = jnp.asarray(splits.train.labels[:64])
    zeros = jnp.zeros((depth, 64, 32, 32, 16))

    @jax.jit
    def sizes(key):
        variables = model.init(key, images, zeros)

        def loss(probes):
            logits = model.apply(variables, images, probes)
            return -jax.nn.log_softmax(logits)[jnp.arange(64), labels].mean()

        return jnp.sqrt(jnp.square(jax.grad(loss)(zeros)).mean((1, 2, 3, 4)))

    return [np.asarray(sizes(jax.random.key(seed))) for seed in SEEDS]


figure, axis = plt.subplots(figsize=(7, 3.5))
for residual, color in ((False, "C1"), (True, "C0")):
    name = "with shortcuts" if residual else "plain"
    for seed, size in zip(SEEDS, gradients_by_depth(residual), strict=True):
        label = name if seed == SEEDS[0] else None
        axis.semilogy(range(1, 21), size / size[-1], color=color, label=label)
        print(f"{name:14}  seed {seed}: first / last = {size[0] / size[-1]:.2g}")
axis.set(xlabel="block", ylabel="gradient, relative to the last block")
axis.legend()
figure.tight_layout()

# %% [markdown]
# In the plain network, the gradient shrinks by a factor of about 500,000 from the last block to the first. With
# shortcuts, the output of a block is `x + f(x)`, and its derivative is `1 + f'(x)`. The 1 carries the gradient
# back to the first block, whatever `f` does; here it even grows by a factor of ten.
#
# <details><summary>Question: batch norm, or larger initial weights, also keep the sizes in order. Are shortcuts still
# needed?</summary>
# Yes: all networks of section 1 had batch norm. It mends the size of a gradient, but not its direction. In a
# deep plain network, the gradients of similar images are hardly correlated
# (<a href="https://arxiv.org/abs/1702.08591">Balduzzi et al. 2017</a>).</details>
#
# ## 3. Groups: what they save and what they cost
#
# A convolution from 64 to 64 channels with 3 x 3 pixels multiplies 9 x 64 x 64 weights at each pixel. Divided into g
# groups, it multiplies g times fewer. With 64 groups of one channel it is called depthwise. Does it also take
# 64 times less time? We measure the layer with its gradients on 64 images of 16 x 16 pixels.


# %%
def seconds_of(groups, width=64, rounds=7, repeats=5):
    """Median seconds of a layer with its gradients."""
    layer = nn.Conv(width, (3, 3), feature_group_count=groups, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (64, 16, 16, width))
    params = layer.init(jax.random.key(1), x)

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: (layer.apply(p, x) ** 2).sum(), (0, 1))(params, x)

    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(gradients(params, x))
        times.append((time.perf_counter() - start) / repeats)
    return np.median(times[1:])  # the first round compiles


GROUPS = (1, 2, 4, 8, 16, 32, 64)
with cf.fast_convolutions():
    seconds = np.array([seconds_of(groups) for groups in GROUPS])
flops = np.array([3 * 2 * 64 * 16 * 16 * 9 * 64 * 64 / groups for groups in GROUPS])
for groups, one, many in zip(GROUPS, seconds, flops, strict=True):
    print(
        f"{groups:2} groups  {many / 1e6:7.1f} MFLOP  {1e3 * one:5.2f} ms"
        f"  {many / one / 1e9:6.1f} GFLOP/s"
    )
figure, axis = plt.subplots(figsize=(6, 3.5))
axis.loglog(GROUPS, flops / flops[0], "o--", label="operations")
axis.loglog(GROUPS, seconds / seconds[0], "o-", label="seconds")
axis.set(xlabel="groups", ylabel="relative to one group")
axis.legend()
figure.tight_layout()

# %% [markdown]
# 64 groups save 98 % of the operations and about two thirds of the time.
#
# <details><summary>Question: why do 64 groups not take 64 times less time?</summary>
# The layer still reads and writes all of its 64 channels. With so few operations for each number, the processor waits
# for memory. Papers count operations, but you wait for seconds.</details>
#
# <details><summary>Question: why do two groups take longer than one?</summary>
# For a 3 x 3 kernel with one group, the library computes 4 x 4 outputs together with a quarter of the
# multiplications (minimal filtering). It does not do so for groups: with few channels in a group, that
# pays less.</details>
#
# ## 4. Attention on patches
#
# A convolution assumes, before it sees any image, that neighbouring pixels belong together and that a cat is a cat
# wherever it sits. Attention between patches must learn both. So one expects that it needs more images, and that
# the gap between the two becomes smaller with more of them. A small vision transformer and a residual network of
# about as many operations train with 1,000, 4,000 and 16,000 images, for 300 steps each.

# %%
STEPS = 20 if SHORT else 300
SIZES = [size for size in (1_000, 4_000, 16_000) if size <= TRAIN_SIZE]
contestants = {
    "attention": ViT(depth=3),
    "residual": ResidualNet(widths=(12, 24, 48, 96), blocks=1, preactivation=True),
}
few = {}
for name, model in contestants.items():
    operations = cf.Summary(model).flops / 1e6
    print(f"{name}: {operations:.1f} MFLOP an image")
    for size in SIZES:
        epochs = STEPS * 128 / size
        few[name, size] = train(
            model, size, recipe="modern", epochs=epochs, batch_size=128
        )

figure, axis = plt.subplots(figsize=(6, 3.5))
for name in contestants:
    means, halves = zip(*(accuracy(few[name, size]) for size in SIZES), strict=True)
    axis.errorbar(SIZES, means, halves, fmt="o-", label=name, capsize=3)
axis.set(xlabel="training images", ylabel="test accuracy in %", xscale="log")
axis.legend()
figure.tight_layout()
for size in SIZES:
    pair = [few[name, size].record.test_accuracy for name in ("residual", "attention")]
    gap = cf.compare(*pair)
    print(
        f"{size:6,} images: residual - attention "
        f"{100 * gap.mean:5.2f} ± {100 * gap.half_width:.2f} points"
    )

# %% [markdown]
# The gap does not become smaller. It is 11 points with 1,000 images and 14 with 16,000.
#
# <details><summary>Question: what is wrong with the expectation, or with the experiment?</summary>
# With the same number of steps, more images mean fewer looks at each: 38 looks at each of 1,000 images, and 2 at each
# of 16,000. For so short a training, 4,000 images are already enough for both networks. What attention
# lacks here is training. To see what images are worth, one must train until neither network gains from more
# steps; that takes hours on this machine. Change `STEPS` and try.</details>
#
# ## 5. A better network or a better recipe?
#
# When a paper's network beats an older one, it usually comes with a newer recipe. Which of the two is it? We train
# both networks with both recipes for four epochs. The old network is `convbn` of the lesson; the new one is the
# residual network of section 4, with norms before its convolutions. The old recipe is SGD with one cosine cycle, and
# the new one is `modern`: Muon, a short warm-up, label smoothing and milder augmentation. Each of the four trains at
# the rate that a range test finds for it.

# %%
nets = {"old network": "convbn", "new network": contestants["residual"]}
RATE = 0.03 if SHORT else "auto"
recipes = {
    "old recipe": {"lr": RATE, "cycles": 1, "cycle_len": 4},
    "new recipe": {"lr": RATE, "recipe": "modern", "epochs": 4},
}
table = {}
for net, model in nets.items():
    for recipe, settings in recipes.items():
        table[net, recipe] = run = train(model, **settings)
        rate = run.steps.rates.max()
        print(
            f"{net}, {recipe}: {mean_and_interval(run.record)} at a rate of {rate:.2g}"
        )

# %%
figure, axis = plt.subplots(figsize=(5, 3.5))
for recipe, color in zip(recipes, ("C1", "C0"), strict=True):
    means, halves = zip(*(accuracy(table[net, recipe]) for net in nets), strict=True)
    axis.errorbar(
        list(nets), means, halves, fmt="o-", color=color, label=recipe, capsize=3
    )
axis.set(ylabel="test accuracy in %", xlim=(-0.3, 1.3))
axis.legend()
figure.tight_layout()
record = {key: run.record.test_accuracy for key, run in table.items()}
old = record["old network", "old recipe"]
for name, key in {
    "a new network alone": ("new network", "old recipe"),
    "a new recipe alone": ("old network", "new recipe"),
    "both": ("new network", "new recipe"),
}.items():
    gain = cf.compare(record[key], old)
    print(f"{name:20} {100 * gain.mean:5.2f} ± {100 * gain.half_width:.2f} points")

# %% [markdown]
# The new recipe alone gives 11 points, and the new network alone gives 7. So the old network with the new recipe
# beats the new network with the old recipe.
#
# <details><summary>Question: 11 and 7 are 18, but both together give only 13. Why?</summary>
# Part of what each of them gives is the same: both make short trainings faster. A gain that was measured with
# one recipe therefore says little about the gain with another one. A fair comparison gives all networks the
# better recipe, and a rate of their own.</details>
#
# <details><summary>Question: with the new recipe, is the new network better than the old one?</summary>
# It is not shown: 67.3 ± 3.9 against 65.7 ± 1.2, with three seeds. The page "Comparing" of the documentation tells how
# many seeds would show it.</details>
#
# The page "Families" of the documentation has twelve families of networks since 2012, from `vgg` to `vit`, to go on
# with.
