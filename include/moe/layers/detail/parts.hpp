#pragma once
/// @file
/// The parts of a layer that come in any number: branches, output policies and losses.

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "moe/core/parameter.hpp"
#include "moe/core/policy.hpp"
#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Values of losses on the host, once their stream has them.
template <class Space>
std::vector<double> read_losses(const std::optional<Space>& space, const Vector<double, Space>& losses,
                                const char* name) {
  std::vector<double> result(losses.extent(0));
  if (result.empty()) return result;
  refuse_capture(*space, "Reading a tape's loss, which waits for the device,", "Read it after the graph's launch.");
  Kokkos::View<double*, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> host(result.data(), result.size());
  Kokkos::deep_copy(*space, host, losses);
  space->fence(name);
  return result;
}

/// The parameters of each branch or output policy, one after another; each puts its `name` before its arrays'.
template <class Branches, class T, class Space>
struct PartParameters;
template <class T, class Space>
struct PartParameters<List<>, T, Space> : NoParameters {};
template <class First, class... Rest, class T, class Space>
struct PartParameters<List<First, Rest...>, T, Space> {
  typename First::template Parameters<T, Space> first;
  PartParameters<List<Rest...>, T, Space> rest;
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    decltype(first)::visit(Prefixed{f, First::name}, same.first...);
    decltype(rest)::visit(f, same.rest...);
  }
};

template <class Branches, class T, class Space>
struct PartSaved;
template <class T, class Space>
struct PartSaved<List<>, T, Space> {};
template <class First, class... Rest, class T, class Space>
struct PartSaved<List<First, Rest...>, T, Space> {
  typename First::template Saved<T, Space> first;
  PartSaved<List<Rest...>, T, Space> rest;
};

template <class Values, class Parameters>
void allocate_parts(List<>, const Values&, const ExpertShape&, Parameters&) {}
template <class First, class... Rest, class Values, class T, class Space>
void allocate_parts(List<First, Rest...>, const Values& values, const ExpertShape& shape,
                    PartParameters<List<First, Rest...>, T, Space>& parameters) {
  parameters.first = std::get<First>(values).template parameters<T, Space>(shape);
  allocate_parts(List<Rest...>{}, values, shape, parameters.rest);
}

template <class Values, class Context, class Batch, class Parameters, class View, class Saved>
void forward_branches(List<>, const Values&, Context&, const Batch&, const Parameters&, const View&, Saved&) {}
template <class First, class... Rest, class Values, class Context, class Batch, class Parameters, class View,
          class Saved>
void forward_branches(List<First, Rest...>, const Values& values, Context& ctx, const Batch& batch,
                      const Parameters& parameters, const View& y, Saved& saved) {
  std::get<First>(values).forward(ctx, batch, parameters.first, y, saved.first);
  forward_branches(List<Rest...>{}, values, ctx, batch, parameters.rest, y, saved.rest);
}

template <class Values, class Context, class Batch, class DY, class Parameters, class Saved, class View>
void backward_branches(List<>, const Values&, Context&, const Batch&, const DY&, const Parameters&, Saved&, const View&,
                       Parameters&) {}
template <class First, class... Rest, class Values, class Context, class Batch, class DY, class Parameters, class Saved,
          class View>
void backward_branches(List<First, Rest...>, const Values& values, Context& ctx, const Batch& batch, const DY& dy,
                       const Parameters& parameters, Saved& saved, const View& dx, Parameters& gradients) {
  std::get<First>(values).backward(ctx, batch, dy, parameters.first, saved.first, dx, gradients.first);
  backward_branches(List<Rest...>{}, values, ctx, batch, dy, parameters.rest, saved.rest, dx, gradients.rest);
}

/// The output policies that act on the routed sum (routed) or behind the branches (not), in order; backward in reverse.
template <bool routed, class Values, class Context, class Batch, class Parameters, class View, class Saved>
void forward_outputs(List<>, const Values&, Context&, const Batch&, const Parameters&, const View&, Saved&) {}
template <bool routed, class First, class... Rest, class Values, class Context, class Batch, class Parameters,
          class View, class Saved>
void forward_outputs(List<First, Rest...>, const Values& values, Context& ctx, const Batch& batch,
                     const Parameters& parameters, const View& y, Saved& saved) {
  if constexpr (First::routed == routed) std::get<First>(values).forward(ctx, batch, parameters.first, y, saved.first);
  forward_outputs<routed>(List<Rest...>{}, values, ctx, batch, parameters.rest, y, saved.rest);
}

template <bool routed, class Values, class Context, class Batch, class Parameters, class Saved, class View>
void backward_outputs(List<>, const Values&, Context&, const Batch&, const Parameters&, const Saved&, const View&,
                      Parameters&) {}
template <bool routed, class First, class... Rest, class Values, class Context, class Batch, class Parameters,
          class Saved, class View>
void backward_outputs(List<First, Rest...>, const Values& values, Context& ctx, const Batch& batch,
                      const Parameters& parameters, const Saved& saved, const View& dy, Parameters& gradients) {
  backward_outputs<routed>(List<Rest...>{}, values, ctx, batch, parameters.rest, saved.rest, dy, gradients.rest);
  if constexpr (First::routed == routed)
    std::get<First>(values).backward(ctx, batch, parameters.first, saved.first, dy, gradients.first);
}

template <class L>
inline constexpr bool any_routed = false;
template <class... Ts>
inline constexpr bool any_routed<List<Ts...>> = (Ts::routed || ...);

/// Runs f(loss, number) for each loss.
template <class Values, class F>
void each_loss(List<>, const Values&, const F&, Index = 0) {}
template <class First, class... Rest, class Values, class F>
void each_loss(List<First, Rest...>, const Values& values, const F& f, Index number = 0) {
  f(std::get<First>(values), number);
  each_loss(List<Rest...>{}, values, f, number + 1);
}

template <class L>
inline constexpr int length = 0;
template <class... Ts>
inline constexpr int length<List<Ts...>> = sizeof...(Ts);

}  // namespace detail

MOE_NAMESPACE_END
