#pragma once
/// @file
/// Causal self-attention with rotary positions (Su et al. 2021), on the library's grouped products: a group is one head
/// of one sequence.

#include "elementwise.hpp"

namespace text {

using moe::Tensor3;

/// Sizes of a batch of sequences: T = batch * length tokens.
struct Shape {
  Index batch, length, heads, width;  // width of one head
  Index tokens() const { return batch * length; }
  Index groups() const { return batch * heads; }
};

template <class T, class Space>
struct AttentionParameters {
  Matrix<T, Space> qkv;  // (3H, H)
  Matrix<T, Space> out;  // (H, H)
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    f("qkv_proj", same.qkv...);
    f("o_proj", same.out...);
  }
};

/// Cosine and sine of each position and pair of a head: angle = position * 10000^(-i / half).
template <class Real, class Space>
struct Rotary {
  Matrix<Real, Space> table;  // (length, width): cosines, then sines
  KOKKOS_FUNCTION void operator()(Index position) const {
    const Index half = Index(table.extent(1)) / 2;
    for (Index i = 0; i < half; ++i) {
      const Real angle = Real(position) * Kokkos::pow(Real(10000), -Real(i) / Real(half));
      table(position, i) = Kokkos::cos(angle);
      table(position, half + i) = Kokkos::sin(angle);
    }
  }
};

/// Between token order, (T, 3H) or (T, H), and head order, (groups * length, width); rotates queries and keys.
template <class T, class Space>
struct Heads {
  using Real = moe::RouterReal<T>;
  Shape shape;
  Matrix<T, Space> tokens;
  Index column;  // of the first head in `tokens`
  T* heads;
  Matrix<Real, Space> rotary;  // empty: no rotation
  bool to_heads;

  KOKKOS_FUNCTION void operator()(Index row) const {
    const Index group = row / shape.length, position = row % shape.length;
    const Index t = group / shape.heads * shape.length + position;
    T* token = tokens.data() + t * Index(tokens.extent(1)) + column + group % shape.heads * shape.width;
    T* head = heads + row * shape.width;
    const Index half = shape.width / 2;
    for (Index i = 0; i < half; ++i) {
      Real c = 1, s = 0;
      if (rotary.data() != nullptr) {
        c = rotary(position, i);
        s = rotary(position, half + i);
      }
      if (to_heads) {
        const Real a = Real(token[i]), b = Real(token[i + half]);
        head[i] = T(a * c - b * s);
        head[i + half] = T(a * s + b * c);
      } else {  // the transpose of the rotation: gradients go back through it
        const Real a = Real(head[i]), b = Real(head[i + half]);
        token[i] = T(a * c + b * s);
        token[i + half] = T(b * c - a * s);
      }
    }
  }
};

/// Scores of one query to probabilities over it and what came before.
template <class T, class Space>
struct CausalSoftmax {
  using Real = moe::RouterReal<T>;
  Index length;
  Real scale;
  Matrix<T, Space> p;  // (groups * length, length)
  KOKKOS_FUNCTION void operator()(Index row) const {
    const Index live = row % length + 1;
    T* z = p.data() + row * length;
    with_wide_row(z, live, [&](Row<Real> scores) {
      for (Index i = 0; i < live; ++i) scores[i] *= scale;
      moe::Softmax{}.apply(moe::Team{}, scores);
    });
    for (Index i = live; i < length; ++i) z[i] = T(0);
  }
};

/// dp becomes the gradient of the scores.
template <class T, class Space>
struct CausalSoftmaxGradient {
  using Real = moe::RouterReal<T>;
  Index length;
  Real scale;
  Matrix<T, Space> p, dp;
  KOKKOS_FUNCTION void operator()(Index row) const {
    const T* probability = p.data() + row * length;
    T* gradient = dp.data() + row * length;
    Real dot = 0;
    for (Index i = 0; i < length; ++i) dot += Real(probability[i]) * Real(gradient[i]);
    for (Index i = 0; i < length; ++i) gradient[i] = T(scale * Real(probability[i]) * (Real(gradient[i]) - dot));
  }
};

template <class Space>
struct GroupOffsets {
  Index length;
  Vector<Index, Space> offsets;
  KOKKOS_FUNCTION void operator()(Index g) const { offsets(g) = g * length; }
};

template <class T, class Space>
class Attention {
 public:
  using Parameters = AttentionParameters<T, Space>;
  using Real = moe::RouterReal<T>;

  struct Saved {
    Shape shape;
    Vector<Index, Space> offsets;  // (groups + 1)
    Tensor3<T, Space> q, k, v;     // (groups, length, width)
    Matrix<T, Space> p, mixed;     // (groups * length, length), (T, H)
    Matrix<Real, Space> rotary;    // (length, width)
  };

  static Parameters parameters(Index hidden) {
    return {{"qkv", std::size_t(3 * hidden), std::size_t(hidden)}, {"out", std::size_t(hidden), std::size_t(hidden)}};
  }

  /// x, y (T, H).
  static void forward(moe::Context<Space>& ctx, const Shape& shape, const Matrix<T, Space>& x, const Parameters& p,
                      const Matrix<T, Space>& y, Saved& saved) {
    namespace k = moe::kernels;
    const Index hidden = x.extent(1), rows = shape.groups() * shape.length;
    saved.shape = shape;
    moe::detail::shape(saved.offsets, "offsets", shape.groups() + 1);
    for (auto* view : {&saved.q, &saved.k, &saved.v})
      moe::detail::shape(*view, "head", shape.groups(), shape.length, shape.width);
    moe::detail::shape(saved.p, "p", rows, shape.length);
    moe::detail::shape(saved.mixed, "mixed", shape.tokens(), hidden);
    moe::detail::shape(saved.rotary, "rotary", shape.length, shape.width);
    run(ctx, "offsets", shape.groups() + 1, GroupOffsets<Space>{shape.length, saved.offsets});
    run(ctx, "rotary", shape.length, Rotary<Real, Space>{saved.rotary});

    typename moe::Context<Space>::Scratch scratch(ctx);
    auto qkv = scratch.template matrix<T>(shape.tokens(), 3 * hidden);
    auto mixed = scratch.template matrix<T>(rows, shape.width);
    k::dense_forward<T, Space>(ctx.space, x, p.qkv, qkv);
    run(ctx, "q", rows, Heads<T, Space>{shape, qkv, 0, saved.q.data(), saved.rotary, true});
    run(ctx, "k", rows, Heads<T, Space>{shape, qkv, hidden, saved.k.data(), saved.rotary, true});
    run(ctx, "v", rows, Heads<T, Space>{shape, qkv, 2 * hidden, saved.v.data(), {}, true});
    k::grouped_forward<T, Space>(ctx.space, saved.offsets, flat(saved.q), saved.k, saved.p);
    run(ctx, "softmax", rows, CausalSoftmax<T, Space>{shape.length, scale(shape), saved.p});
    k::grouped_backward_rows<T, Space>(ctx.space, saved.offsets, saved.p, saved.v, mixed);
    run(ctx, "mixed", rows, Heads<T, Space>{shape, saved.mixed, 0, mixed.data(), {}, false});
    k::dense_forward<T, Space>(ctx.space, saved.mixed, p.out, y);
  }

  /// dx (T, H) overwritten; adds into gradients.
  static void backward(moe::Context<Space>& ctx, const Matrix<T, Space>& dy, const Matrix<T, Space>& x,
                       const Parameters& p, const Saved& saved, const Matrix<T, Space>& dx, Parameters& gradients) {
    namespace k = moe::kernels;
    const Shape& shape = saved.shape;
    const Index hidden = x.extent(1), rows = shape.groups() * shape.length;
    typename moe::Context<Space>::Scratch scratch(ctx);
    auto dmixed = scratch.template matrix<T>(shape.tokens(), hidden),
         dqkv = scratch.template matrix<T>(shape.tokens(), 3 * hidden);
    auto dheads = scratch.template matrix<T>(rows, shape.width), dq = scratch.template matrix<T>(rows, shape.width);
    auto dk = scratch.template matrix<T>(rows, shape.width), dv = scratch.template matrix<T>(rows, shape.width);
    auto dp = scratch.template matrix<T>(rows, shape.length);
    moe::detail::fill(ctx.space, dk, T(0));
    moe::detail::fill(ctx.space, dv, T(0));
    k::dense_backward_rows<T, Space>(ctx.space, dy, p.out, dmixed, false);
    k::dense_backward_weight<T, Space>(ctx.space, dy, saved.mixed, gradients.out);
    run(ctx, "dmixed", rows, Heads<T, Space>{shape, dmixed, 0, dheads.data(), {}, true});
    k::grouped_forward<T, Space>(ctx.space, saved.offsets, dheads, saved.v, dp);
    k::grouped_backward_weight<T, Space>(ctx.space, saved.offsets, saved.p, dheads, grouped(shape, dv));
    run(ctx, "dsoftmax", rows, CausalSoftmaxGradient<T, Space>{shape.length, scale(shape), saved.p, dp});
    k::grouped_backward_rows<T, Space>(ctx.space, saved.offsets, dp, saved.k, dq);
    k::grouped_backward_weight<T, Space>(ctx.space, saved.offsets, dp, flat(saved.q), grouped(shape, dk));
    run(ctx, "dq", rows, Heads<T, Space>{shape, dqkv, 0, dq.data(), saved.rotary, false});
    run(ctx, "dk", rows, Heads<T, Space>{shape, dqkv, hidden, dk.data(), saved.rotary, false});
    run(ctx, "dv", rows, Heads<T, Space>{shape, dqkv, 2 * hidden, dv.data(), {}, false});
    k::dense_backward_rows<T, Space>(ctx.space, dqkv, p.qkv, dx, false);
    k::dense_backward_weight<T, Space>(ctx.space, dqkv, x, gradients.qkv);
  }

 private:
  static Real scale(const Shape& shape) { return Real(1) / Kokkos::sqrt(Real(shape.width)); }
  static Matrix<const T, Space> flat(const Tensor3<T, Space>& heads) {
    return Matrix<const T, Space>(heads.data(), heads.extent(0) * heads.extent(1), heads.extent(2));
  }
  static Tensor3<T, Space> grouped(const Shape& shape, const Matrix<T, Space>& rows) {
    return Tensor3<T, Space>(rows.data(), shape.groups(), shape.length, shape.width);
  }
};

}  // namespace text
