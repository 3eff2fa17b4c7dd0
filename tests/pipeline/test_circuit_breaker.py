"""The line between images that fail and a store that does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import ERROR_CODES, STORAGE_CODES, StoreFailingError
from maskrcnn.pipeline.circuit_breaker import WINDOW_IMAGES, Batch, CircuitBreaker


def test_the_store_is_at_fault_when_half_of_the_window_fails_with_one_of_its_codes() -> None:
    circuit_breaker = CircuitBreaker()
    circuit_breaker.add(Batch(100))
    circuit_breaker.add(Batch(99, {"access_denied": 99}, "s3://b/k: 403"))
    with pytest.raises(StoreFailingError, match=r"100 of the last 200 .* access_denied \(s3://b/l: 403\)"):
        circuit_breaker.add(Batch(1, {"access_denied": 1}, "s3://b/l: 403"))


def test_credentials_that_expire_after_a_million_images_are_noticed() -> None:
    circuit_breaker = CircuitBreaker()
    for _ in range(1000):
        circuit_breaker.add(Batch(1000))
    for _ in range(WINDOW_IMAGES - 1):
        circuit_breaker.add(Batch(1, {"access_denied": 1}))
    with pytest.raises(StoreFailingError):
        circuit_breaker.add(Batch(1, {"access_denied": 1}))


def test_two_codes_are_two_causes() -> None:
    circuit_breaker = CircuitBreaker()
    assert circuit_breaker.add(Batch(200, {"access_denied": 99, "storage_error": 99})) == []


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from(sorted(ERROR_CODES.keys() - STORAGE_CODES)))))
def test_images_own_faults_never_stop_a_run(batches: list[tuple[int, str]]) -> None:
    circuit_breaker, released = CircuitBreaker(), []
    for images, code in batches:
        released += circuit_breaker.add(Batch(images, {code: images}))
    released += circuit_breaker.drain()
    assert [batch.images for batch in released] == [images for images, _ in batches]
    assert not any(batch.failures for batch in released)


@given(st.lists(st.integers(1, 300)))
def test_every_batch_comes_out_once_in_order_and_the_window_is_no_larger_than_it_must_be(
    sizes: list[int],
) -> None:
    circuit_breaker, out = CircuitBreaker(), []
    for number, images in enumerate(sizes):
        out += [batch.held for batch in circuit_breaker.add(Batch(images, held=number))]
        window = sizes[len(out) : number + 1]
        assert sum(window) >= min(WINDOW_IMAGES, sum(sizes[: number + 1]))
        assert sum(window[1:]) < WINDOW_IMAGES
    out += [batch.held for batch in circuit_breaker.drain()]
    assert out == list(range(len(sizes)))
    assert circuit_breaker.drain() == []
