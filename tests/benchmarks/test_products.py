"""What counts as a matrix product, and the graph of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.products import (
    Product,
    ProductsAlone,
    limit_graph,
    matrix_products,
    product_of_maps,
    product_of_weights,
)
from models.variants import VARIANTS
from service.engine.runtime.loading import open_session


# The papers' own counts include depthwise convolutions and interpolations, a few percent.
@pytest.mark.parametrize(("name", "published_gmac"), [("dat_tiny", 4.6), ("dat_pp_tiny", 4.3), ("dat_pp_base", 16.6)])
def test_products_are_nearly_all_of_the_published_operations(name: str, published_gmac: float) -> None:
    products = matrix_products(VARIANTS[name].config, (224, 224), 1)
    gmac = sum(each.macs for each in products) / 1e9
    assert 0.94 * published_gmac < gmac <= published_gmac


def test_products_grow_with_the_batch_but_for_their_number() -> None:
    one, three = (matrix_products(VARIANTS["dat_demo"].config, (64, 64), batch) for batch in (1, 3))
    assert len(one) == len(three)
    assert [3 * each.macs for each in one] == [each.macs for each in three]


def test_window_attention_of_dat_tiny_is_listed_as_it_is_defined() -> None:
    products = matrix_products(VARIANTS["dat_tiny"].config, (224, 224), 1)
    assert products[0] == Product(1, 56 * 56, 4 * 4 * 3, 96, weights=True)  # the stem's patches
    assert products[1] == Product(1, 56 * 56, 96, 3 * 96, weights=True)
    assert products[2] == Product(64 * 3, 49, 32, 49, weights=False)
    assert products[-1] == Product(1, 1, 768, 1000, weights=True)


def test_longer_side_of_a_product_of_maps_becomes_its_rows() -> None:
    assert product_of_maps((12, 32, 49), (12, 49, 196)) == Product(12, 196, 49, 32, weights=False)


def test_single_rows_are_put_together() -> None:
    assert product_of_maps((6272, 1, 32), (6272, 32, 49)) == Product(1, 6272, 32, 49, weights=False)


def test_product_of_weights_has_one_matrix() -> None:
    assert product_of_weights((196, 384), (384, 1536)) == Product(1, 196, 384, 1536, weights=True)


def test_graph_computes_every_product() -> None:
    products = [
        Product(1, 5, 3, 2, weights=True),
        Product(1, 5, 3, 2, weights=True),
        Product(4, 5, 3, 2, weights=False),
    ]
    session = open_session(limit_graph(products).SerializeToString(), [("CPUExecutionProvider", {})], threads=1)
    given = {each.name: np.ones(each.shape, np.float32) for each in session.get_inputs()}
    first, second, third = session.run(None, given)
    assert first.shape == second.shape == (5, 2)
    assert not np.array_equal(first, second)  # each has weights of its own, or the runtime would compute one only
    assert np.array_equal(third, np.full((4, 5, 2), 3, np.float32))


def test_products_run_alone() -> None:
    ProductsAlone(matrix_products(VARIANTS["dat_demo"].config, (64, 64), 2)).run()
