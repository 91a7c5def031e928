#pragma once
/// @file
/// A model from a checkpoint, of which some arrays are trained on a new text while all others stay as they are.

#include <moe/io/checkpoint.hpp>
#include <progress.hpp>
#include <validation.hpp>

#include "frozen.hpp"
#include "methods.hpp"

namespace adapt {

/// Trains the arrays that `Trained` names, and measures what that does to the old domains and to the new one.
template <class Block, class Trained>
class Adaptation {
 public:
  using Model = text::Transformer<Block>;
  using Space = typename Block::Space;
  using Arrays = typename Trained::Arrays;

  Adaptation(const Task& task, Model model, Frozen frozen = {})
      : task_(task),
        options_(task.base.options),
        model_(std::move(model)),
        frozen_(std::move(frozen)),
        trained_(Trained::of(model_.parameters)) {
    ctx_.seed = options_.seed = task.seed;
  }

  /// The whole job; the report says "interrupted" where Ctrl-C ended it.
  Json run(Index steps) {
    Json report{{"seed", task_.seed}, {"steps", steps}, {"interrupted", false}};
    const std::string fingerprint = frozen_.fingerprint();
    validate(report, 0);
    if (steps > 0) train(steps, report);
    if (text::interrupted()) return {{"interrupted", true}};
    moe::detail::require<moe::DataError>(frozen_.fingerprint() == fingerprint,
                                         "adapters: training changed an array that is frozen.");
    if (!frozen_.empty()) report["frozen"] = fingerprint;
    report["trained_parameters"] = steps > 0 ? count(trained_) : 0.0;
    report["parameters"] = frozen_.count() + count(trained_);
    compare(report);
    if (steps > 0) save();
    return report;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double count(Arrays& arrays) {
    double total = 0;
    Arrays::visit([&](std::string_view, const auto& view) { total += double(view.size()); }, arrays);
    return total;
  }

  void train(Index steps, Json& report) {
    typename Model::Gradients gradients = model_.gradients();
    Trained::freeze(gradients);
    Arrays slopes = Trained::of(gradients);
    moe::AdamW<Arrays> optimizer(trained_, {.beta2 = 0.95, .weight_decay = 0});
    const moe::CosineSchedule schedule{
        .peak = task_.learning_rate, .warmup = steps / 20 + 1, .steps = steps, .floor = task_.learning_rate / 10};
    typename Model::Tape tape;
    text::Progress progress(steps, 0);
    text::Stages::reset();
    double seconds = 0, mean = 0;
    for (Index step = 0; step < steps && !text::interrupted(); ++step) {
      const auto start = Clock::now();
      moe::zero(ctx_, slopes);
      const double bits = pass(step, gradients, tape), norm = moe::gradient_norm(ctx_, slopes);
      moe::detail::require<moe::DataError>(std::isfinite(bits) && std::isfinite(norm), "adapters: step ", step,
                                           " has a loss of ", bits, " and gradients of norm ", norm,
                                           ". Lower --learning-rate.");
      optimizer.step(ctx_, trained_, slopes, schedule(step), moe::clip_factor(norm, 1.0));
      seconds += std::chrono::duration<double>(Clock::now() - start).count();
      mean += (bits - mean) * std::max(0.05, 1.0 / double(step + 1));
      progress.show(step + 1, mean, double(options_.batch * options_.sequence));
      if (step == 0) report["memory_bytes"] = text::Stages::peak_bytes();  // later steps allocate nothing
      if ((step + 1) % std::max<Index>(1, steps / 8) == 0 || step + 1 == steps) validate(report, step + 1);
    }
    progress.finish();
    report["seconds"] = seconds;
    report["tokens_per_second"] = double(steps * options_.batch * options_.sequence) / seconds;
  }

  /// Forward and backward of one batch: replayed sequences first, of task 1, then new ones, of task 0. Bits per byte.
  double pass(Index step, typename Model::Gradients& gradients, typename Model::Tape& tape) {
    ctx_.step = std::uint64_t(step);
    ctx_.training = true;
    const Index length = options_.sequence, count = options_.batch, tokens = count * length,
                old = Index(std::lround(task_.settings.replay * double(count)));
    text::HostBytes inputs("inputs", std::size_t(tokens)), targets("targets", std::size_t(tokens)),
        tasks("tasks", std::size_t(count));
    for (Index b = 0; b < count; ++b) {
      tasks(b) = b < old ? 1 : 0;
      (b < old ? task_.texts.old : task_.texts.fresh)
          .draw(options_.seed, std::uint64_t(step), b, length, inputs.data() + b * length, targets.data() + b * length);
    }
    text::forward(model_, ctx_, inputs, targets, count, length, tape, 1, tasks);
    model_.backward(ctx_, tape, gradients);
    return text::mean_bits(tape);
  }

  /// Appends bits per byte of every domain's validation text to the curve.
  void validate(Json& report, Index step) {
    text::Validation<Block> validation(options_, task_.texts.all);
    validation.run(model_, ctx_, 16, step);
    Json bits;
    for (std::size_t d = 0; d < validation.bits().size(); ++d)
      bits[task_.texts.all.domains()[d].name] = validation.bits()[d];
    report["curve"].push_back({{"step", step}, {"bits_per_byte", bits}});
  }

  /// What the curve's points say beside the first one: gain on the new domain, forgetting in the mean of the old ones.
  void compare(Json& report) const {
    const Json before = report["curve"].front().at("bits_per_byte");
    for (Json& point : report["curve"]) {
      const Json& bits = point.at("bits_per_byte");
      double forgotten = 0;
      for (const Domain& domain : task_.texts.old.domains())
        forgotten += bits.at(domain.name).get<double>() - before.at(domain.name).get<double>();
      const std::string& fresh = task_.texts.fresh.domains().front().name;
      point["gain"] = before.at(fresh).get<double>() - bits.at(fresh).get<double>();
      point["forgetting"] = forgotten / double(task_.texts.old.domains().size());
    }
    const Json& last = report["curve"].back();
    const Json& after = last.at("bits_per_byte");
    for (const Domain& domain : task_.texts.all.domains())
      report["change"][domain.name] = after.at(domain.name).get<double>() - before.at(domain.name).get<double>();
    report.update(
        {{"before", before}, {"after", after}, {"gain", last.at("gain")}, {"forgetting", last.at("forgetting")}});
  }

  /// The trained arrays alone: an adapter is a small file.
  void save() {
    moe::SafetensorsWriter file;
    Arrays::visit([&](std::string_view name, auto& view) { file.add(std::string(name), view); }, trained_);
    file.metadata("adapters", task_.configuration.dump());
    file.write(task_.stem + ".safetensors");
  }

  Task task_;
  Options options_;
  moe::Context<Space> ctx_;
  Model model_;
  Frozen frozen_;
  Arrays trained_;
};

}  // namespace adapt
