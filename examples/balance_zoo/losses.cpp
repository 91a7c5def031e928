#include "losses.hpp"

namespace zoo {

void ChosenLosses::value(moe::Context<Space>& ctx, const moe::Batch<float, Space>& batch,
                         const moe::Routing<float, Space>& routing, const moe::Vector<double, Space>& slot) const {
  for (const Loss& any : losses) std::visit([&](const auto& loss) { loss.value(ctx, batch, routing, slot); }, any);
}

void ChosenLosses::backward(moe::Context<Space>& ctx, const moe::Batch<float, Space>& batch,
                            const moe::Routing<float, Space>& routing, double scale,
                            const moe::RoutingGradients<float, Space>& to) const {
  for (const Loss& any : losses) {
    std::visit([&](const auto& loss) { loss.backward(ctx, batch, routing, scale, to); }, any);
  }
}

}  // namespace zoo
