#pragma once
/// @file
/// Loss on text that was not trained on, what routing did to it, a sample, and what a model costs.

#include "blocks.hpp"
#include "evaluate.hpp"
#include "options.hpp"
#include "text.hpp"
#include "transformer.hpp"

namespace text {

using HostBytes = Kokkos::View<std::int32_t*, Kokkos::HostSpace>;

template <class Model, class Space>
void forward(const Model& model, moe::Context<Space>& ctx, const HostBytes& inputs, const HostBytes& targets,
             Index batch, Index length, typename Model::Tape& tape, double scale = 1, const HostBytes& tasks = {}) {
  using Memory = typename Space::memory_space;
  const auto tokens = Kokkos::create_mirror_view_and_copy(Memory{}, inputs);
  Vector<const std::int32_t, Space> wanted;
  if (targets.is_allocated()) wanted = Kokkos::create_mirror_view_and_copy(Memory{}, targets);
  Vector<const std::int32_t, Space> types;
  if (tasks.is_allocated()) types = Kokkos::create_mirror_view_and_copy(Memory{}, tasks);
  model.forward(ctx, tokens, wanted, batch, length, tape, scale, types);
}

template <class Tape>
double mean_bits(const Tape& tape) {
  const auto losses = on_host(tape.losses);
  double sum = 0;
  for (std::size_t t = 0; t < losses.extent(0); ++t) sum += losses(t);
  return sum / double(losses.extent(0)) / std::log(2.0);
}

/// Root mean square of what the last block hands on.
template <class Tape>
double activation_norm(const Tape& tape) {
  const auto last = on_host(tape.last);
  double squares = 0;
  for (std::size_t i = 0; i < last.size(); ++i) squares += double(last.data()[i]) * double(last.data()[i]);
  return std::sqrt(squares / double(last.size()));
}

/// Parameters, those that act on a token, and the arithmetic of training on one.
template <class Block>
nlohmann::json sizes(const Transformer<Block>& model, const typename Transformer<Block>::Tape& tape, Index length) {
  double total = 0;
  const double embedding = double(model.parameters.embedding.size());
  Transformer<Block>::Parameters::visit([&](std::string_view, const auto& view) { total += double(view.size()); },
                                        model.parameters);
  Work work{double(model.parameters.head.size() + model.parameters.norm.size()) + embedding, 0};
  for (std::size_t i = 0; i < model.blocks().size(); ++i) {
    const Work one = Reader<Block>::work(model.blocks()[i], tape.blocks[i]);
    work.active += one.active;
    work.attention += one.attention;
  }
  const double products = 2 * (work.active - embedding) + 4 * double(length) * work.attention;
  return {{"parameters", total},
          {"active_parameters", work.active},
          {"flops_per_token", 3 * products}};  // backward is twice forward
}

template <class Block>
class Validation {
 public:
  using Model = Transformer<Block>;
  using Tape = typename Model::Tape;
  Validation(const Options& options, const Corpus& corpus) : options_(options), corpus_(corpus) {}

  /// Runs up to `batches` batches of each domain's validation text, the same at every call; gives their routing.
  template <class Space>
  RoutingRecord run(const Model& model, moe::Context<Space>& ctx, Index batches, Index step) {
    const Stage stage("validation");
    const bool training = std::exchange(ctx.training, false);
    RoutingRecord record;
    record.model = options_.model;
    record.step = step;
    bits_.clear();
    entropy_ = 0;
    Index passes = 0;
    const Index length = options_.sequence;
    for (const Domain& domain : corpus_.domains()) {
      const Index whole = (Index(domain.validation.size()) - 1) / length;
      const Index batch = std::min(options_.batch, whole), count = std::min(batches, whole / batch);
      double sum = 0;
      for (Index n = 0; n < count; ++n, ++passes) {
        HostBytes inputs("inputs", std::size_t(batch * length)), targets("targets", std::size_t(batch * length));
        for (Index b = 0; b < batch; ++b) {
          const Index place = (n * batch + b) * (whole / (batch * count)) * length;  // spread over the text
          Corpus::copy(domain.validation, std::uint64_t(place), length, inputs.data() + b * length,
                       targets.data() + b * length);
        }
        forward(model, ctx, inputs, targets, batch, length, tape_);
        sum += mean_bits(tape_);
        collect(model, record, inputs, record.domains.size());
      }
      record.domains.push_back(domain.name);
      bits_.push_back(sum / double(count));
    }
    entropy_ /= double(std::max<Index>(1, passes * Index(record.layers.size())));
    ctx.training = training;
    return record;
  }

  /// Bits per byte of the last run, by domain.
  const std::vector<double>& bits() const { return bits_; }

  /// What the last pass left.
  const Tape& tape() const { return tape_; }

  /// Bits per byte of the last run, all domains alike.
  double mean() const { return std::accumulate(bits_.begin(), bits_.end(), 0.0) / double(bits_.size()); }

  /// The last word on a model: a longer run, the shares of its routing, and a sample.
  template <class Space>
  nlohmann::json finish(const Model& model, moe::Context<Space>& ctx) {
    const RoutingRecord record = run(model, ctx, 16, 0);
    nlohmann::json result = summarise(record);
    for (std::size_t d = 0; d < bits_.size(); ++d)
      result["validation_bits_per_byte"][corpus_.domains()[d].name] = bits_[d];
    result["validation_bits_per_byte"]["mean"] = mean();
    result["router_entropy"] = entropy_;
    const auto& start = corpus_.domains().front().validation;
    result["sample"] =
        sample(model, ctx, {start.begin(), start.begin() + std::min<Index>(64, Index(start.size()))}, 300);
    return result;
  }

 private:
  void collect(const Model& model, RoutingRecord& record, const HostBytes& inputs, std::size_t domain) {
    for (std::size_t i = 0; i < inputs.extent(0); ++i) {
      record.byte.push_back(std::uint8_t(inputs(i)));
      record.domain.push_back(std::uint8_t(domain));
    }
    record.layers.resize(std::size_t(Reader<Block>::routings) * tape_.blocks.size());
    std::size_t number = 0;
    for (std::size_t i = 0; i < tape_.blocks.size(); ++i) {
      Reader<Block>::each(model.blocks()[i], tape_.blocks[i], [&](const auto&, const auto& made, const auto&) {
        append(record.layers[number++], made);
        entropy_ += router_entropy(made);
      });
    }
  }

  /// `bytes` bytes that follow `text`, drawn at temperature 0.8. What is no plain character becomes a dot.
  template <class Space>
  std::string sample(const Model& model, moe::Context<Space>& ctx, std::string text, Index bytes) {
    const bool training = std::exchange(ctx.training, false);
    const moe::RandomKey key{options_.seed, 0, 0, moe::Purpose::sample};
    for (Index n = 0; n < bytes; ++n) {
      const Index length = options_.sequence, live = std::min<Index>(length, Index(text.size()));
      HostBytes inputs("inputs", std::size_t(length));
      for (Index i = 0; i < live; ++i)
        inputs(i) = static_cast<unsigned char>(text[text.size() - std::size_t(live - i)]);
      forward(model, ctx, inputs, {}, 1, length, tape_);
      const auto logits = on_host(tape_.logits);
      double top = -INFINITY, total = 0;
      std::vector<double> weight(vocabulary);
      for (Index v = 0; v < vocabulary; ++v) top = std::max(top, double(logits(live - 1, v)));
      for (Index v = 0; v < vocabulary; ++v) total += weight[v] = std::exp((double(logits(live - 1, v)) - top) / 0.8);
      double u = moe::random_uniform<double>(key, std::uint64_t(n), 0) * total;
      Index chosen = 0;
      while (chosen + 1 < vocabulary && (u -= weight[chosen]) > 0) ++chosen;
      text += char(chosen);
    }
    ctx.training = training;
    for (char& c : text) c = (c >= ' ' && c < 127) || c == '\n' ? c : '.';
    return text;
  }

  const Options options_;
  const Corpus& corpus_;
  std::vector<double> bits_;  // of each domain
  double entropy_ = 0;
  Tape tape_;
};

}  // namespace text
