#pragma once
/// @file
/// Products one output element a work item: correct on every backend, and the oracle of the faster ones.

#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::portable {

template <class T>
struct Element {
  Product<T> product;

  KOKKOS_FUNCTION void operator()(Index item) const {
    Index i = item / product.n;
    const Index j = item % product.n;
    Product<T> p = product;
    if (product.offsets == nullptr) {
      p = product.of(0);
    } else if (product.cut_sum) {
      p = product.of(i / product.m);
      i %= product.m;
    } else {
      if (i >= product.offsets[product.experts]) return;
      Index e = 0;
      while (product.offsets[e + 1] <= i) ++e;
      p = product.of(e);
      i -= product.offsets[e];
    }
    RouterReal<T> total = 0;
    for (Index k = 0; k < p.sum; ++k) {
      total += RouterReal<T>(p.a.data[i * p.a.row_stride + k * p.a.sum_stride]) *
               RouterReal<T>(p.b.data[j * p.b.row_stride + k * p.b.sum_stride]);
    }
    T& c = p.c[i * p.n + j];
    c = T(p.accumulate ? RouterReal<T>(c) + total : total);
  }
};

/// Runs a product on any space.
template <class Space, class T>
void multiply(const Space& space, const Product<T>& product) {
  const Index items = product.m * product.n * (product.cut_sum ? product.experts : 1);
  Kokkos::parallel_for("moe::portable::multiply", Kokkos::RangePolicy<Space>(space, 0, items), Element<T>{product});
}

}  // namespace kernels::portable

MOE_NAMESPACE_END
