#pragma once
/// @file
/// What all layers share: their numbers, the checks of their calls, fresh weights.

#include <atomic>

#include "moe/core/batch.hpp"
#include "moe/core/capture.hpp"
#include "moe/core/parameter.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

inline std::uint64_t next_layer_id() {
  static std::atomic<std::uint64_t> next{0};
  return ++next;
}

/// Throws where the batch's arrays do not fit each other, or the layer.
template <class T, class Space>
void check_tokens(const char* layer, const Batch<T, Space>& batch, Index hidden) {
  const Index tokens = batch.tokens();
  require<ShapeError>(batch.hidden() == hidden, layer, "::forward: x has shape (", tokens, ", ", batch.hidden(),
                      "), but hidden is ", hidden, ".");
  require<ShapeError>(tokens < 2 || Index(batch.x.stride(0)) == batch.hidden(), layer, "::forward: the rows of x are ",
                      batch.x.stride(0), " apart, but ", batch.hidden(),
                      " wide. Copy the subview into a moe::Matrix first.");
  const auto one_a_token = [&](const char* what, const auto& view) {
    require<ShapeError>(!view.is_allocated() || Index(view.extent(0)) == tokens, layer, "::forward: ", view.extent(0),
                        " ", what, " for ", tokens, " tokens.");
  };
  one_a_token("entries of the mask", batch.mask);
  one_a_token("positions", batch.positions);
  one_a_token("token ids", batch.token_ids);
  one_a_token("rows of draws", batch.draws);
  require<ShapeError>(!batch.sequence_offsets.is_allocated() || batch.sequence_offsets.extent(0) > 0, layer,
                      "::forward: sequence_offsets of no numbers. S sequences have S + 1, the last one T.");
}

/// Throws where a tape or gradients are another layer's, or dy has not the shape of what forward gave.
template <class DY>
void check_backward(const char* layer, std::uint64_t id, std::uint64_t tape, std::uint64_t gradients, const DY& dy,
                    Index tokens, Index hidden) {
  require<Error>(tape == id, layer, "::backward: this tape ",
                 tape == 0 ? "is empty. Run forward(ctx, x, tape) first."
                           : "belongs to another layer. Give the tape of this layer's forward.");
  require<Error>(gradients == id, layer,
                 "::backward: these gradients belong to another layer. Make them with gradients().");
  require<ShapeError>(Index(dy.extent(0)) == tokens && Index(dy.extent(1)) == hidden, layer,
                      "::backward: dy has shape (", dy.extent(0), ", ", dy.extent(1), "), expected (", tokens, ", ",
                      hidden, ").");
  require<ShapeError>(tokens < 2 || Index(dy.stride(0)) == hidden, layer, "::backward: the rows of dy are ",
                      dy.stride(0), " apart, but ", hidden, " wide. Copy the subview into a moe::Matrix first.");
}

/// Throws where a graph is captured that a pass cannot go into yet: its tape has not seen so many tokens, so it has to
/// allocate.
template <class Space>
void check_seen(const Space& space, const char* pass, bool seen, Index tokens) {
  require<Error>(seen || !capturing(space), pass, " cannot be captured in a graph yet: this tape holds none on ",
                 tokens, " tokens, so it has to allocate. Run the same calls once before capturing.");
}
/// The tape has seen as many tokens as its result is of.
template <class Space, class Result>
requires Kokkos::is_view_v<Result>
void check_seen(const Space& space, const char* pass, const Result& result, Index tokens) {
  check_seen(space, pass, Index(result.extent(0)) == tokens, tokens);
}

/// Draws fresh weights, by the seed, the layer's number and names behind `prefix`, so that layers of other prefixes
/// draw other numbers; vectors and biases keep what they hold, and so do the second factors of low-rank updates unless
/// they are asked for.
template <class Space, class Parameters>
void initialise_layer(Parameters& parameters, Seed seed, std::uint32_t layer, double scale, const char* prefix = "",
                      bool second_factors = false) {
  const typename Space::execution_space space{};
  const Seed own{seed.value * 0x9E3779B97F4A7C15ull + layer};
  auto draw = [&](std::string_view name, const auto& view) {
    const bool kept = name.ends_with("bias") || (!second_factors && name.ends_with("lora_B"));
    if (!kept && view.rank() > 1) initialise(space, name, view, own, scale);
  };
  Parameters::visit(Prefixed{draw, prefix}, parameters);
  space.fence("moe::initialise_layer");
}

}  // namespace detail

MOE_NAMESPACE_END
