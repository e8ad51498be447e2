"""The example networks: hand-counted parameters, initial variances, and layers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.models.networks import MODELS, ConvNorm, build, pad_shortcut

SMALL = {"input_shape": (8, 8, 1), "mean": (73.0,), "std": (90.0,)}

# Counted by hand: a convolution has kernel * kernel * in * out numbers, BatchNorm after it 2 * out.
# fmt: off
RESNET8_WIDTH8 = (
    9 * 1 * 8 + 2 * 8
    + 2 * (9 * 8 * 8 + 2 * 8)
    + (9 * 8 * 16 + 2 * 16) + (9 * 16 * 16 + 2 * 16)
    + (9 * 16 * 32 + 2 * 32) + (9 * 32 * 32 + 2 * 32)
    + 32 * 10 + 10
)
RESNET20_CIFAR10 = (
    9 * 3 * 16 + 2 * 16
    + 6 * (9 * 16 * 16 + 2 * 16)
    + (9 * 16 * 32 + 2 * 32) + 5 * (9 * 32 * 32 + 2 * 32)
    + (9 * 32 * 64 + 2 * 64) + 5 * (9 * 64 * 64 + 2 * 64)
    + 64 * 10 + 10
)
RESNET18_CIFAR10 = (
    9 * 3 * 64 + 2 * 64
    + 4 * (9 * 64 * 64 + 2 * 64)
    + (9 * 64 * 128 + 2 * 128) + 3 * (9 * 128 * 128 + 2 * 128) + (64 * 128 + 2 * 128)
    + (9 * 128 * 256 + 2 * 256) + 3 * (9 * 256 * 256 + 2 * 256) + (128 * 256 + 2 * 256)
    + (9 * 256 * 512 + 2 * 512) + 3 * (9 * 512 * 512 + 2 * 512) + (256 * 512 + 2 * 512)
    + 512 * 10 + 10
)


def bottleneck_stage(before: int, width: int, blocks: int) -> int:
    norms = 2 * (width + width + 4 * width)
    first = before * width + 9 * width * width + width * 4 * width + norms
    shortcut = before * 4 * width + 2 * 4 * width
    other = 4 * width * width + 9 * width * width + width * 4 * width + norms
    return first + shortcut + (blocks - 1) * other


RESNET50_IMAGENET = (
    49 * 3 * 64 + 2 * 64
    + bottleneck_stage(64, 64, 3) + bottleneck_stage(256, 128, 4)
    + bottleneck_stage(512, 256, 6) + bottleneck_stage(1024, 512, 3)
    + 2048 * 1000 + 1000
)
# fmt: on


def shapes(model: nn.Module, input_shape: tuple[int, ...]):
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.uint8)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def random_variables(model: nn.Module, input_shape: tuple[int, ...]):
    """Return variables in float64 as `init` would shape them, without its long compilation.

    No scale, bias or statistic is 0 or 1 by chance, as all are at the start.
    """
    rng = np.random.default_rng(0)
    variables = shapes(model, input_shape)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.7, leaf.shape), variables["params"])
    state = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), variables.get("batch_stats", {})
    )
    return {"params": params, "batch_stats": state}


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize(
    ("name", "classes", "input_shape", "fields", "expected"),
    [
        ("resnet8", 10, (28, 28, 1), {"width": 8}, RESNET8_WIDTH8),
        ("resnet8", 10, (28, 28, 1), {"width": 8}, 19_074),  # the reference protocol's number
        ("resnet20", 10, (32, 32, 3), {}, RESNET20_CIFAR10),
        ("resnet18", 10, (32, 32, 3), {}, RESNET18_CIFAR10),
        ("resnet50", 1000, (64, 64, 3), {"imagenet_stem": True}, RESNET50_IMAGENET),
        ("resnet50", 1000, (64, 64, 3), {"imagenet_stem": True}, 25_557_032),  # torchvision's
        ("mlp", 10, (28, 28, 1), {}, (784 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * 10),
    ],
)
def test_parameter_counts(name, classes, input_shape, fields, expected: int) -> None:
    model = build(name, classes, input_shape=input_shape, mean=(0.0,), std=(1.0,), **fields)
    params = shapes(model, input_shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("imagenet_stem", [False, True])
def test_output_shapes(name: str, imagenet_stem: bool) -> None:
    fields = {} if name == "mlp" else {"imagenet_stem": imagenet_stem}
    model = build(name, 7, input_shape=(64, 64, 3), mean=(0.0,), std=(1.0,), **fields)
    variables = shapes(model, (64, 64, 3))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    features, logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="features"), variables, images
    )
    width = {"resnet8": 32, "resnet20": 64, "resnet18": 512, "resnet50": 2048, "mlp": 512}[name]
    assert (features.shape, logits.shape) == ((2, width), (2, 7))


def test_stages_and_stems_halve_the_image() -> None:
    seen = []

    def note(next_method, args, kwargs, context):
        out = next_method(*args, **kwargs)
        if type(context.module).__name__ == "ResidualBlock":
            seen.append(out.shape[1])
        return out

    for name, stem, expected in [
        ("resnet8", False, [28, 14, 7]),
        ("resnet18", False, [28, 28, 14, 14, 7, 7, 4, 4]),
        ("resnet18", True, [7, 7, 4, 4, 2, 2, 1, 1]),
    ]:
        seen.clear()
        model = build(name, 10, input_shape=(28, 28, 1), mean=(0.0,), std=(1.0,), imagenet_stem=stem)
        with nn.intercept_methods(note):
            shapes(model, (28, 28, 1))
        assert seen == expected


def test_initial_weights_are_he_normal() -> None:
    model = build("mlp", 300, input_shape=(300,), mean=(0.0,), std=(1.0,), width=300)
    params = model.init(jax.random.key(0), jnp.zeros((1, 300)), train=False)["params"]
    conv = ConvNorm(channels=64, kernel=3, stride=1, norm_decay=0.9, dtype=jnp.float32)
    layer = conv.init(jax.random.key(0), jnp.zeros((1, 3, 3, 32)), train=False)["params"]
    cases = [
        (params["Dense_0"]["kernel"], 300),
        (params["Dense_2"]["kernel"], 300),
        (layer["Conv_0"]["kernel"], 9 * 32),
    ]
    for kernel, fan_in in cases:
        kernel = np.asarray(kernel, np.float64)
        scaled = kernel.ravel() / np.sqrt(2.0 / fan_in)
        error = 4 / np.sqrt(kernel.size)
        assert abs(scaled.mean()) < error
        assert abs(scaled.var() - 1.0) < np.sqrt(2) * error
        assert np.abs(scaled).max() > 3.5  # a truncated normal would stop near 2.3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 5, 6])
def test_pad_shortcut(stride: int, channels: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    expected = np.zeros((2, -(-5 // stride), -(-4 // stride), channels), np.float32)
    before = (channels - 3) // 2
    for row in range(expected.shape[1]):
        for column in range(expected.shape[2]):
            for channel in range(3):
                pixel = x[:, row * stride, column * stride, channel]
                expected[:, row, column, before + channel] = pixel
    np.testing.assert_array_equal(pad_shortcut(x, channels, stride), expected)


def test_resnet_forward_in_numpy() -> None:
    """The whole of ResNet-8 in evaluation mode, written out with loops, in float64."""
    model = build("resnet8", 3, width=2, **SMALL)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    variables = random_variables(model, (8, 8, 1))

    def conv_norm(x: np.ndarray, path: list[str], stride: int) -> np.ndarray:
        params, state = variables["params"], variables["batch_stats"]
        for key in path:
            params, state = params[key], state[key]
        kernel = params["Conv_0"]["kernel"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = x.shape[1] // stride
        out = np.zeros((len(x), size, size, kernel.shape[-1]))
        for row in range(size):
            for column in range(size):
                top, left = row * stride, column * stride
                window = padded[:, top : top + 3, left : left + 3]
                out[:, row, column] = np.tensordot(window, kernel, axes=3)
        norm, state = params["BatchNorm_0"], state["BatchNorm_0"]
        out = (out - state["mean"]) / np.sqrt(state["var"] + 1e-5)
        return out * norm["scale"] + norm["bias"]

    x = (images.astype(np.float64) - 73.0) / 90.0
    x = np.maximum(conv_norm(x, ["ConvNorm_0"], 1), 0)
    for stage, stride in enumerate((1, 2, 2)):
        block = f"ResidualBlock_{stage}"
        y = np.maximum(conv_norm(x, [block, "ConvNorm_0"], stride), 0)
        y = conv_norm(y, [block, "ConvNorm_1"], 1)
        extra = (y.shape[-1] - x.shape[-1]) // 2
        shortcut = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (extra, extra)))
        x = np.maximum(shortcut + y, 0)
    features = x.mean(axis=(1, 2))
    head = variables["params"]["Dense_0"]
    logits = features @ head["kernel"] + head["bias"]

    actual = model.apply(as_float32(variables), images, train=False, method="features")
    assert features.std() > 0.01
    np.testing.assert_allclose(actual[0], features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual[1], logits, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=["resnet8", "mlp"])
def small(request):
    model = build(request.param, 5, width=4, **SMALL)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    return model, as_float32(random_variables(model, (8, 8, 1))), images


def test_features_and_logits_agree(small) -> None:
    model, variables, images = small
    features, logits = model.apply(variables, images, method="features")
    np.testing.assert_array_equal(model.apply(variables, images, train=False), logits)
    params = variables["params"]
    head = params[max(name for name in params if name.startswith("Dense"))]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], logits, rtol=1e-5)


def test_uint8_and_float_images_give_the_same(small) -> None:
    model, variables, images = small
    as_float = images.astype(np.float32)
    expected = model.apply(variables, images, train=False)
    np.testing.assert_array_equal(model.apply(variables, as_float, train=False), expected)
    plain = model.clone(mean=(0.0,), std=(1.0,))
    standard = (as_float - 73.0) / 90.0
    actual = plain.apply(variables, standard, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_treats_every_example_by_itself(small) -> None:
    model, variables, images = small
    together = model.apply(variables, images, train=False)
    alone = np.concatenate([model.apply(variables, one[None], train=False) for one in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_batch_norm_decay_is_the_share_of_the_old_value() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    moved = {}
    for decay in (0.0, 0.75):
        model = build("resnet8", 5, width=4, norm_decay=decay, **SMALL)
        variables = as_float32(random_variables(model, (8, 8, 1)))
        variables["batch_stats"] = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        _, state = model.apply(variables, images, train=True, mutable=["batch_stats"])
        moved[decay] = state["batch_stats"]["ConvNorm_0"]["BatchNorm_0"]["mean"]
    assert np.abs(moved[0.0]).max() > 1e-3
    np.testing.assert_allclose(moved[0.75], 0.25 * moved[0.0], rtol=1e-5)


def test_bfloat16_activations_keep_float32_parameters_and_logits() -> None:
    model = build("resnet8", 5, width=4, dtype=jnp.bfloat16, **SMALL)
    images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
    logits, variables = jax.eval_shape(
        lambda key: model.init_with_output(key, images, train=False), jax.random.key(0)
    )
    dtypes = {leaf.dtype for leaf in [logits, *jax.tree.leaves(variables)]}
    assert dtypes == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vgg"}, "name is 'vgg', but must be one of resnet8"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"width": 0}, "width is 0"),
        ({"input_shape": (64,)}, "resnet8 takes images"),
        ({"mean": (0.0, 0.0)}, "mean has 2 entries"),
        ({"std": (0.0,)}, "std is .* must be finite and positive"),
    ],
)
def test_errors_are_sentences(changes: dict, message: str) -> None:
    good = {"name": "resnet8", "num_classes": 10, **SMALL}
    with pytest.raises(ValueError, match=message):
        build(**{**good, **changes})


@pytest.mark.parametrize("norm", ["weighted_batch", "batch", "group"])
def test_a_normalisation_heeds_weights_and_other_examples_as_it_says(norm):
    model = build("resnet8", 10, width=8, input_shape=(8, 8, 1), mean=(0.0,), std=(1.0,), norm=norm)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    assert ("batch_stats" in variables) == (norm != "group")

    def logits(images, weights):
        given = {
            "train": True,
            "weights": jnp.asarray(weights, jnp.float32),
            "mutable": ["batch_stats"],
        }
        return np.asarray(model.apply(variables, images, **given)[0])

    plain, weighted = logits(images, np.ones(6)), logits(images, np.arange(1.0, 7.0))
    assert np.allclose(plain, weighted, atol=1e-5) == (norm != "weighted_batch")
    fewer = logits(images[:4], np.ones(4))
    assert np.allclose(plain[:4], fewer, atol=1e-5) == (norm == "group")
