import functools
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import euclidean
from scipy.stats import pearsonr
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine_similarity

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import (
    cosine_similarity,
    embedding_correlation,
    euclidean_similarity,
    split_product_similarity,
)

INF = float("inf")

# Each with the value of identical embeddings.
MEASURES = {
    "cosine": (cosine_similarity, 1.0),
    "euclidean": (euclidean_similarity, 0.0),
    "correlation": (embedding_correlation, 1.0),
    "chunks": (functools.partial(split_product_similarity, chunks=4), 1.0),
    "any chunks": (functools.partial(split_product_similarity, chunks=4, any_position=True), 1.0),
    "whole": (functools.partial(split_product_similarity, chunks=1, normalization="embedding"), 1.0),
}
each_measure = pytest.mark.parametrize(("measure", "identical"), list(MEASURES.values()), ids=list(MEASURES))


def random_embeddings(seed: int = 0, n: int = 6, d: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


def structured_embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a network with rectified units gives: many zeros, few large entries, a common offset."""
    generated, training = random_embeddings(1)
    common = torch.linspace(0, 5, 32)
    return (generated + common).relu() * 10, (0.9 * generated + 0.1 * training + common).relu() * 10


def unchecked(measure):
    function, options = (measure.func, measure.keywords) if isinstance(measure, functools.partial) else (measure, {})
    return functools.partial(inspect.unwrap(function), **options)


def test_similarities_of_a_worked_pair():
    generated, training = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])

    assert cosine_similarity(generated, training).item() == pytest.approx(0.6)
    assert euclidean_similarity(generated, training).item() == pytest.approx(-(20**0.5))
    # Deviations (2, 5, -7) / 3 and (2, -1, -1) / 3: 6 / sqrt(78 * 6).
    assert embedding_correlation(generated, training).item() == pytest.approx(6 / (78 * 6) ** 0.5)


def test_split_products_of_a_worked_pair():
    generated = torch.tensor([[3.0, 4.0, 0.0, 12.0]])
    training = torch.tensor([[4.0, 3.0, 5.0, 0.0]])
    split = functools.partial(split_product_similarity, generated, training, chunks=2)

    # Cosines of chunks at their own position: 24 / 25 and 0; across positions also 3/5 and 3/5.
    assert split().item() == pytest.approx(0.96)
    assert split(any_position=True).item() == pytest.approx(0.96)
    # Norms are 13 and sqrt(50).
    assert split(normalization="embedding").item() == pytest.approx(24 / (13 * 50**0.5))
    assert split(normalization="embedding", any_position=True).item() == pytest.approx(36 / (13 * 50**0.5))


@pytest.mark.parametrize("embeddings", [random_embeddings, structured_embeddings])
def test_similarities_agree_with_scikit_learn_and_scipy(embeddings):
    generated, training = embeddings()
    rows = list(zip(generated.double().numpy(), training.double().numpy(), strict=True))

    np.testing.assert_allclose(
        cosine_similarity(generated, training),
        np.diag(sklearn_cosine_similarity(generated.numpy(), training.numpy())),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        euclidean_similarity(generated, training), [-euclidean(a, b) for a, b in rows], rtol=1e-6
    )
    np.testing.assert_allclose(
        embedding_correlation(generated, training), [pearsonr(a, b).statistic for a, b in rows], atol=1e-6
    )


@pytest.mark.parametrize("embeddings", [random_embeddings, structured_embeddings])
@pytest.mark.parametrize("chunks", [1, 2, 8, 32])
@pytest.mark.parametrize("any_position", [False, True])
def test_split_products_agree_with_a_loop_over_chunks(embeddings, chunks, any_position):
    generated, training = embeddings()
    by_chunk, by_embedding = [], []
    for a, b in zip(generated.double().numpy(), training.double().numpy(), strict=True):
        parts = [
            (first, second)
            for i, first in enumerate(np.split(a, chunks))
            for j, second in enumerate(np.split(b, chunks))
            if any_position or i == j
        ]
        norms = [np.linalg.norm(first) * np.linalg.norm(second) for first, second in parts]
        products = [first @ second for first, second in parts]
        by_chunk.append(max(p / norm if norm else 0.0 for p, norm in zip(products, norms, strict=True)))
        by_embedding.append(max(products) / (np.linalg.norm(a) * np.linalg.norm(b)))
    options = {"chunks": chunks, "any_position": any_position}

    value = split_product_similarity(generated, training, **options)
    unit = split_product_similarity(generated, training, normalization="embedding", **options)

    np.testing.assert_allclose(value, by_chunk, atol=1e-6)
    np.testing.assert_allclose(unit, by_embedding, atol=1e-6)


def test_one_copied_chunk_of_many_shows_in_the_split_product_only():
    generated, training = random_embeddings(d=256)
    generated[:, 32:40] = 3 * training[:, 32:40]

    assert (split_product_similarity(generated, training, chunks=32) > 0.999).all()
    assert (cosine_similarity(generated, training) < 0.5).all()


def test_a_chunk_that_moved_is_found_at_any_position():
    generated, training = random_embeddings(d=256)
    generated[:, 32:64] = training[:, 64:96]
    split = functools.partial(split_product_similarity, generated, training, chunks=8)

    assert (split(any_position=True) > 0.999).all()
    assert (split() < 0.8).all()


@each_measure
@given(order=st.permutations(range(6)), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_a_pair_has_one_value_whatever_its_batch_and_whichever_comes_first(measure, identical, order, seed):
    generated, training = random_embeddings(seed)

    together = measure(generated, training)

    alone = torch.cat([measure(generated[i : i + 1], training[i : i + 1]) for i in order])
    torch.testing.assert_close(together[list(order)], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(measure(training, generated), together, atol=1e-6, rtol=1e-5)


@each_measure
def test_noise_makes_embeddings_less_alike(measure, identical):
    _, training = random_embeddings()
    noise = torch.randn(training.shape, generator=torch.Generator().manual_seed(5))

    values = torch.stack([measure(training + scale * noise, training) for scale in (0.0, 0.1, 0.5, 2.0)])

    torch.testing.assert_close(values[0], torch.full((6,), identical))
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("measure", [cosine_similarity, embedding_correlation, MEASURES["chunks"][0]])
@given(scale=st.floats(1e-25, 1e25), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_angles_are_blind_to_length_and_never_leave_their_range(measure, scale, seed):
    embeddings, _ = random_embeddings(seed, n=4, d=16)

    similarity = measure(embeddings * scale, embeddings)

    assert (similarity <= 1).all()
    torch.testing.assert_close(similarity, torch.ones(4))
    assert (measure(-embeddings * scale, embeddings) >= -1).all()


@given(offset=st.floats(-5, 5), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_the_correlation_is_blind_to_an_offset_and_the_cosine_is_not(offset, seed):
    generated, training = random_embeddings(seed)

    torch.testing.assert_close(
        embedding_correlation(generated + offset, training),
        embedding_correlation(generated, training),
        atol=1e-5,
        rtol=0,
    )
    if abs(offset) > 1:
        assert not torch.allclose(
            cosine_similarity(generated + offset, training), cosine_similarity(generated, training)
        )


@given(seed=st.integers(0, 100))
@settings(max_examples=25)
def test_the_distance_of_unit_vectors_follows_from_their_cosine(seed):
    generated, training = (torch.nn.functional.normalize(part) for part in random_embeddings(seed))

    expected = -(2 - 2 * cosine_similarity(generated, training)).clamp(min=0).sqrt()

    torch.testing.assert_close(euclidean_similarity(generated, training), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_distances_survive_extreme_lengths(scale):
    generated, training = random_embeddings()

    torch.testing.assert_close(
        euclidean_similarity(generated * scale, training * scale) / scale, euclidean_similarity(generated, training)
    )


@pytest.mark.parametrize("measure", [cosine_similarity, embedding_correlation, MEASURES["chunks"][0]])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_an_embedding_that_says_nothing_resembles_nothing(measure, value):
    _, training = random_embeddings(n=1)
    blank = torch.full_like(training, value)

    if value == 0 or measure is embedding_correlation:
        assert measure(blank, training).item() == 0
        assert measure(blank, blank).item() == 0


@each_measure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_measured_in_float32(measure, identical, dtype):
    generated, training = (part.to(dtype) for part in random_embeddings())

    value = measure(generated, training)

    assert value.dtype == torch.float32
    torch.testing.assert_close(value, measure(generated.float(), training.float()))


@each_measure
def test_no_pairs_have_no_values(measure, identical):
    assert measure(torch.zeros(0, 8), torch.zeros(0, 8)).shape == (0,)


@each_measure
@pytest.mark.parametrize(
    ("generated", "training", "message"),
    [
        (torch.ones(2, 4), torch.tensor([[1.0] * 4, [INF] * 4]), "training must be finite .* 1 of 2 embeddings"),
        (torch.full((1, 4), torch.nan), torch.ones(1, 4), "generated must be finite .* 1 of 1 embeddings"),
        (torch.ones(2, 4), torch.ones(2, 8), r"\(2, 4\) and \(2, 8\)"),
        (torch.ones(4), torch.ones(4), r"generated must have shape \[n, d\].*\(4,\)"),
        (torch.ones(2, 0), torch.ones(2, 0), r"generated must have shape \[n, d\].*\(2, 0\)"),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 4), "generated must be floating point.*int8"),
        (torch.full((1, 4), 1e300, dtype=torch.float64), torch.ones(1, 4), "generated must be finite in float32"),
    ],
)
def test_invalid_embeddings_are_refused_by_name(measure, identical, generated, training, message):
    with pytest.raises(ConfigurationError, match=message):
        unchecked(measure)(generated, training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks=0"),
        ({"chunks": 5}, "divide the 32 numbers.*chunks=5"),
        ({"chunks": 4, "normalization": "token"}, "normalization='token'"),
    ],
)
def test_the_split_product_names_what_it_refuses(options, message):
    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(split_product_similarity)(*random_embeddings(), **options)
