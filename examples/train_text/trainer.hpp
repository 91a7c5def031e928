#pragma once
/// @file
/// Training, validation, sampling and the report, for any model.

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <moe/io/checkpoint.hpp>
#include <nlohmann/json.hpp>

#include "options.hpp"
#include "progress.hpp"
#include "text.hpp"
#include "transformer.hpp"

namespace text {

template <class Layer>
class Trainer {
 public:
  using Model = Transformer<Layer>;
  using Space = typename Layer::Space;
  using Host = Kokkos::View<std::int32_t*, Kokkos::HostSpace>;

  template <class MakeLayer>
  Trainer(const Options& options, const Corpus& corpus, const MakeLayer& make_layer)
      : options_(options),
        corpus_(corpus),
        model_(options.hidden, options.layers, options.heads, moe::Seed{options.seed}, make_layer),
        gradients_(model_.gradients()),
        optimizer_(model_.parameters, {.beta2 = 0.95, .weight_decay = 0.1}),
        statistics_(model_.layers().size()) {
    ctx_.seed = options.seed;
    if (!options.resume.empty()) {
      state_ = moe::load_checkpoint(options.resume, model_.parameters, model_.buffers, optimizer_);
    }
  }

  /// The whole job. Returns the report that is also written to OUT/report.json.
  nlohmann::json run() {
    const moe::CosineSchedule schedule{.peak = options_.learning_rate,
                                       .warmup = options_.steps / 20 + 1,
                                       .steps = options_.steps,
                                       .floor = options_.learning_rate / 10};
    Progress progress(options_.steps, state_.step);
    const auto start = std::chrono::steady_clock::now();
    double smooth = 0;
    for (; state_.step < options_.steps && !interrupted(); ++state_.step) {
      const double bits = step(schedule(state_.step));
      smooth = smooth == 0 ? bits : 0.9 * smooth + 0.1 * bits;
      const moe::LoadReport load = moe::load_report(tape_.blocks[0].moe);
      progress.show(state_.step + 1, smooth, double(options_.batch * options_.sequence), load.maximum_violation());
      curve_.push_back(
          {{"step", state_.step + 1}, {"bits_per_byte", bits}, {"maximum_violation", load.maximum_violation()}});
    }
    progress.finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    const std::string checkpoint = options_.out + "/" + options_.model + ".safetensors";
    state_.data_position = state_.step * options_.batch;
    state_.seed = options_.seed;
    moe::save_checkpoint(checkpoint, model_.parameters, model_.buffers, optimizer_, state_,
                         {{"model", options_.model}});
    nlohmann::json report{{"model", options_.model},      {"steps", state_.step},     {"seed", options_.seed},
                          {"seconds", seconds},           {"checkpoint", checkpoint}, {"parameters", parameters()},
                          {"interrupted", interrupted()}, {"curve", curve_}};
    if (!interrupted()) finish(report);
    return report;
  }

 private:
  /// One optimiser step; returns the training loss in bits per byte.
  double step(double learning_rate) {
    ctx_.step = std::uint64_t(state_.step);
    ctx_.training = true;
    const Index length = options_.sequence, count = options_.batch * length;
    Host inputs("inputs", std::size_t(count)), targets("targets", std::size_t(count));
    for (Index b = 0; b < options_.batch; ++b) {
      corpus_.draw(options_.seed, ctx_.step, b, length, inputs.data() + b * length, targets.data() + b * length);
    }
    forward(inputs, targets, options_.batch, length, tape_);
    moe::zero(ctx_, static_cast<typename Model::Parameters&>(gradients_));
    model_.backward(ctx_, tape_, gradients_);
    moe::clip_gradient_norm(ctx_, static_cast<typename Model::Parameters&>(gradients_), 1.0);
    optimizer_.step(ctx_, model_.parameters, gradients_, learning_rate);
    for (std::size_t i = 0; i < model_.layers().size(); ++i) {
      statistics_[i].reset();
      statistics_[i].add(tape_.blocks[i].moe);
      model_.layers()[i].update_balance(ctx_, statistics_[i]);
    }
    return mean_bits(tape_);
  }

  void forward(const Host& inputs, const Host& targets, Index batch, Index length, typename Model::Tape& tape) {
    auto tokens = Kokkos::create_mirror_view_and_copy(typename Space::memory_space{}, inputs);
    Vector<const std::int32_t, Space> wanted;
    if (targets.is_allocated()) wanted = Kokkos::create_mirror_view_and_copy(typename Space::memory_space{}, targets);
    model_.forward(ctx_, tokens, wanted, batch, length, tape);
  }

  static double mean_bits(const typename Model::Tape& tape) {
    auto losses = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, tape.losses);
    double sum = 0;
    for (std::size_t t = 0; t < losses.extent(0); ++t) sum += losses(t);
    return sum / double(losses.extent(0)) / std::log(2.0);
  }

  /// Bits per byte of a domain's validation text, up to 16 batches of it.
  double validate(const Domain& domain, typename Model::Tape& tape) {
    const Index length = options_.sequence, whole = (Index(domain.validation.size()) - 1) / length;
    const Index batch = std::min(options_.batch, whole), batches = std::min<Index>(16, whole / batch);
    double sum = 0;
    for (Index n = 0; n < batches; ++n) {
      Host inputs("inputs", std::size_t(batch * length)), targets("targets", std::size_t(batch * length));
      for (Index b = 0; b < batch; ++b) {
        const Index place = (n * batch + b) * (whole / (batch * batches)) * length;  // spread over the text
        Corpus::copy(domain.validation, std::uint64_t(place), length, inputs.data() + b * length,
                     targets.data() + b * length);
      }
      forward(inputs, targets, batch, length, tape);
      sum += mean_bits(tape);
    }
    return sum / double(batches);
  }

  /// `bytes` bytes that follow `prompt`, drawn at temperature 0.8.
  std::string sample(std::string text, Index bytes) {
    typename Model::Tape tape;
    const moe::RandomKey key{options_.seed, 0, 0, moe::Purpose::sample};
    for (Index n = 0; n < bytes; ++n) {
      const Index length = options_.sequence, live = std::min<Index>(length, Index(text.size()));
      Host inputs("inputs", std::size_t(length));
      for (Index i = 0; i < live; ++i)
        inputs(i) = static_cast<unsigned char>(text[text.size() - std::size_t(live - i)]);
      forward(inputs, {}, 1, length, tape);
      auto logits = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, tape.logits);
      double top = -INFINITY, total = 0;
      std::vector<double> weight(vocabulary);
      for (Index v = 0; v < vocabulary; ++v) top = std::max(top, double(logits(live - 1, v)));
      for (Index v = 0; v < vocabulary; ++v) total += weight[v] = std::exp((double(logits(live - 1, v)) - top) / 0.8);
      double u = moe::random_uniform<double>(key, std::uint64_t(n), 0) * total;
      Index chosen = 0;
      while (chosen + 1 < vocabulary && (u -= weight[chosen]) > 0) ++chosen;
      text += char(chosen);
    }
    return text;
  }

  Index parameters() const {
    Index count = 0;
    auto add = [&](std::string_view, const auto& view) { count += Index(view.size()); };
    Model::Parameters::visit(add, model_.parameters);
    return count;
  }

  /// Validation, load reports and a sample.
  void finish(nlohmann::json& report) {
    ctx_.training = false;
    typename Model::Tape tape;
    double sum = 0;
    for (const Domain& domain : corpus_.domains()) {
      const double bits = validate(domain, tape);
      report["validation_bits_per_byte"][domain.name] = bits;
      sum += bits;
      for (std::size_t i = 0; i < tape.blocks.size(); ++i) {
        const moe::LoadReport load = moe::load_report(tape.blocks[i].moe);
        report["load"][domain.name].push_back({{"routed", load.routed},
                                               {"kept", load.kept},
                                               {"dropped", load.dropped()},
                                               {"maximum_violation", load.maximum_violation()},
                                               {"coefficient_of_variation", load.coefficient_of_variation()},
                                               {"entropy", load.entropy()}});
      }
    }
    report["validation_bits_per_byte"]["mean"] = sum / double(corpus_.domains().size());
    for (std::size_t i = 0; i < tape_.blocks.size(); ++i) loads_.push_back(moe::load_report(tape_.blocks[i].moe));
    const auto& first = corpus_.domains().front().validation;
    const Index prompt = std::min<Index>(64, Index(first.size()));
    report["sample"] = nlohmann::json::binary({});
    sample_ = sample(std::string(first.begin(), first.begin() + prompt), 300);
    report["sample"] = printable(sample_);
    report["load_last_step"] = nlohmann::json::array();
    for (const moe::LoadReport& load : loads_) report["load_last_step"].push_back(load.routed);
    print(report);
  }

  /// Valid UTF-8 whatever the model wrote: bytes that are not plain become dots.
  static std::string printable(std::string text) {
    for (char& c : text) c = (c >= ' ' && c < 127) || c == '\n' ? c : '.';
    return text;
  }

  void print(const nlohmann::json& report) const {
    std::FILE* out = options_.json ? stderr : stdout;
    fmt::print(out, "\nValidation, bits per byte:\n");
    for (const auto& [name, bits] : report["validation_bits_per_byte"].items())
      fmt::print(out, "  {:<12} {:.3f}\n", name, double(bits));
    for (std::size_t i = 0; i < loads_.size(); ++i) {
      std::ostringstream table;
      table << loads_[i];
      fmt::print(out, "\nLoad of layer {} in the last step:\n{}", i, table.str());
    }
    fmt::print(out, "\nA sample (the first 64 bytes are given):\n{}\n", printable(sample_));
  }

  Options options_;
  const Corpus& corpus_;
  moe::Context<Space> ctx_;
  Model model_;
  typename Model::Gradients gradients_;
  moe::AdamW<typename Model::Parameters> optimizer_;
  std::vector<moe::LoadStatistics<Space>> statistics_;
  typename Model::Tape tape_;
  moe::TrainingState state_;
  nlohmann::json curve_ = nlohmann::json::array();
  std::vector<moe::LoadReport> loads_;
  std::string sample_;
};

}  // namespace text
