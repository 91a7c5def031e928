#pragma once
/// @file
/// Training as it is really done, for any model: microbatches, checkpoints, spikes rolled back, a run that can be
/// stopped at any moment and goes on bit for bit. In float16 the loss is scaled, and steps whose gradients overflow are
/// skipped.

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <moe/io/checkpoint.hpp>
#include <set>

#include "configuration.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "spike.hpp"
#include "text.hpp"
#include "validation.hpp"

namespace text {

template <class Block>
class Trainer {
 public:
  using Model = Transformer<Block>;
  using Space = typename Block::Space;
  using Json = nlohmann::json;

  /// `make_block(number)` builds each block of the model.
  template <class MakeBlock>
  Trainer(const Options& options, const Corpus& corpus, const MakeBlock& make_block)
      : options_(options),
        corpus_(corpus),
        model_(options.hidden, blocks(options), moe::Seed{options.seed}, make_block),
        gradients_(model_.gradients()),
        optimizer_(model_.parameters, {.beta2 = 0.95, .weight_decay = 0.1}),
        loss_scale_({.start = options.loss_scale}),
        statistics_(std::size_t(options.layers)),
        validation_(options, corpus) {
    moe::detail::require<moe::ConfigError>(options.batch % options.microbatches == 0, "train_text: ", options.batch,
                                           " sequences do not divide into ", options.microbatches,
                                           " microbatches. Choose --batch as a multiple of --microbatches.");
    ctx_.seed = options.seed;
  }

  /// The whole job; returns the report.
  Json run() {
    Stages::reset();
    if (!options_.resume.empty()) restore(options_.resume);
    save();  // what a spike goes back to
    const moe::CosineSchedule schedule{.peak = options_.learning_rate,
                                       .warmup = options_.steps / 20 + 1,
                                       .steps = options_.steps,
                                       .floor = options_.learning_rate / 10};
    Progress progress(options_.steps, state_.step);
    const auto start = std::chrono::steady_clock::now();
    const Index first = state_.step;
    while (state_.step < options_.steps && !interrupted()) {
      const Index batch = next_batch();
      double bits = NAN, norm = NAN;
      try {
        bits = pass(batch);
        norm = moe::gradient_norm(ctx_, arrays(gradients_)) / loss_scale();
      } catch (const moe::DataError&) {
        bits = NAN;  // numbers that are not finite are a spike like any other
      }
      if (!std::isfinite(norm) && (!scales || loss_scale_.at_floor())) bits = NAN;
      if (detector_.spike(bits)) {
        roll_back(batch, bits);
        continue;
      }
      detector_.add(bits);
      update(schedule(state_.step), norm);
      ++state_.step;
      state_.data_position = batch + 1;
      record(bits, norm, schedule(state_.step - 1));
      progress.show(state_.step, detector_.mean, double(options_.batch * options_.sequence),
                    fmt::format("  violation {:.2f}{}", violation_, scaling()));
      if (state_.step % options_.checkpoint_every == 0) save();
    }
    progress.finish();
    const double seconds = seconds_since(start);
    save();
    return report(seconds, double((state_.step - first) * options_.batch * options_.sequence) / (seconds - aside_));
  }

 private:
  using Parameters = typename Model::Parameters;
  static constexpr bool scales = std::is_same_v<typename Block::Scalar, moe::float16>;
  /// Blocks of the model: a pair of layers is one.
  static Index blocks(const Options& options) {
    constexpr Index each = Reader<Block>::routings;
    moe::detail::require<moe::ConfigError>(options.layers % each == 0, "train_text: --model ", options.model,
                                           " alternates between ", each, " kinds of layers, so ", options.layers,
                                           " layers do not do. Give an even number: --layers 2.");
    return options.layers / each;
  }
  /// Calls f(number, layer, decision, the layer's tape) for each routing of the last pass.
  template <class F>
  void each_routing(const F& f) {
    std::size_t number = 0;
    for (std::size_t b = 0; b < model_.blocks().size(); ++b) {
      Reader<Block>::each(model_.blocks()[b], tape_.blocks[b],
                          [&](auto& layer, const auto& made, const auto& tape) { f(number++, layer, made, tape); });
    }
  }
  double loss_scale() const { return scales ? loss_scale_.value() : 1.0; }
  /// A remark for the line of progress.
  std::string scaling() const {
    if (!scales) return "";
    return fmt::format("  loss scale {:g}, {} skipped", loss_scale(), history_.value("skipped_steps", Json()).size());
  }
  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  static Parameters& arrays(typename Model::Gradients& gradients) { return gradients; }
  std::string checkpoint() const { return options_.stem() + ".safetensors"; }

  Index next_batch() const {
    Index batch = state_.data_position;
    while (skipped_.count(batch) != 0) ++batch;
    return batch;
  }

  /// Forward and backward of a batch in microbatches; returns the loss in bits per byte.
  double pass(Index number) {
    ctx_.step = std::uint64_t(number);  // a batch's draws are its own, whatever was skipped before it
    ctx_.training = true;
    const Index length = options_.sequence, count = options_.batch / options_.microbatches, tokens = count * length;
    const double share = 1.0 / double(options_.microbatches), scale = share * loss_scale();
    HostBytes inputs("inputs", std::size_t(tokens)), targets("targets", std::size_t(tokens));
    moe::zero(ctx_, arrays(gradients_));
    for (auto& statistics : statistics_) statistics.reset();
    double bits = 0;
    for (Index m = 0; m < options_.microbatches; ++m) {
      ctx_.first_token = m * tokens;
      for (Index b = 0; b < count; ++b) {
        corpus_.draw(options_.seed, std::uint64_t(number), m * count + b, length, inputs.data() + b * length,
                     targets.data() + b * length);
      }
      if (number == options_.corrupt_batch) scramble(inputs, targets);
      forward(model_, ctx_, inputs, targets, count, length, tape_, scale);
      model_.backward(ctx_, tape_, gradients_, scale);
      each_routing([&](std::size_t i, auto&, const auto& made, const auto&) {
        statistics_[i].add(made.plan, made.batch.mask, ctx_.space);
      });
      bits += share * mean_bits(tape_);
    }
    return bits;
  }

  /// The drill: targets that no text has.
  void scramble(const HostBytes& inputs, const HostBytes& targets) const {
    for (std::size_t i = 0; i < inputs.extent(0); ++i) targets(i) = 255 - inputs(i);
  }

  void update(double learning_rate, double norm) {
    const Stage stage("optimiser");
    const double by = loss_scale();
    if (!scales || loss_scale_.update(std::isfinite(norm))) {
      optimizer_.step(ctx_, model_.parameters, gradients_, learning_rate, moe::clip_factor(norm, 1.0) / by);
    } else {
      history_["skipped_steps"].push_back({{"step", state_.step}, {"loss_scale", by}});
    }
    each_routing([&](std::size_t i, auto& layer, const auto&, const auto&) {
      if constexpr (requires { layer.update_balance(ctx_, statistics_[i]); })
        layer.update_balance(ctx_, statistics_[i]);
    });
  }

  /// What the report draws, about 200 points of it.
  void record(double bits, double norm, double learning_rate) {
    double dropped = 0, choices = 0, entropy = 0;
    violation_ = 0;
    std::vector<moe::LoadReport> loads;  // of all microbatches
    for (const auto& statistics : statistics_) {
      const std::vector<Index> counts = moe::detail::to_host(statistics.counts());
      loads.push_back({options_.batch * options_.sequence, counts, counts});
      violation_ += loads.back().maximum_violation() / double(statistics_.size());
    }
    if (due(200)) {
      moe::DepthStatistics<Space> depths;
      each_routing([&](std::size_t, auto&, const auto& made, const auto& tape) {  // of the last microbatch
        const moe::LoadReport last = moe::load_report(made);
        dropped += double(last.dropped());
        choices += double(last.assignments());
        entropy += router_entropy(made) / double(statistics_.size());
        if constexpr (requires { tape.predictor_logits; }) depths.add(tape);
      });
      history_["curve"].push_back({{"step", state_.step},
                                   {"bits_per_byte", bits},
                                   {"learning_rate", learning_rate},
                                   {"gradient_norm", norm},
                                   {"activation_norm", activation_norm(tape_)},
                                   {"maximum_violation", violation_},
                                   {"drop_rate", choices > 0 ? dropped / choices : 0.0},
                                   {"router_entropy", entropy}});
      const moe::DepthReport::Rule predictor = depths.report().predictor;
      if (predictor.compared > 0) history_["curve"].back()["depth_agreement"] = predictor.agreement();
    }
    if (due(100)) {
      history_["load_history"]["steps"].push_back(state_.step);
      for (std::size_t i = 0; i < loads.size(); ++i) {
        auto row = Json::array();
        for (Index e = 0; e < loads[i].experts(); ++e) row.push_back(std::round(1e4 * loads[i].share(e)) / 1e4);
        history_["load_history"]["layers"][i].push_back(row);
      }
    }
    if (state_.step == options_.steps) {
      each_routing([&](std::size_t, auto&, const auto& made, const auto&) {
        const moe::LoadReport last = moe::load_report(made);
        history_["load"].push_back({{"tokens", last.tokens}, {"routed", last.routed}, {"kept", last.kept}});
      });
    }
    if (due(options_.validations)) {
      const auto start = std::chrono::steady_clock::now();
      const RoutingRecord routing = validation_.run(model_, ctx_, 1, state_.step);
      aside_ += seconds_since(start);
      history_["validation_curve"].push_back({{"step", state_.step}, {"bits_per_byte", validation_.mean()}});
      if (options_.export_routing)
        write_routing(fmt::format("{}.step-{:06}.routing.safetensors", options_.stem(), state_.step), routing);
    }
  }

  /// Is this step one of about `points` in the run? The last step always is.
  bool due(Index points) const {
    return state_.step % std::max<Index>(1, options_.steps / points) == 0 || state_.step == options_.steps;
  }

  /// Back to the last checkpoint, and never again to that batch.
  void roll_back(Index batch, double bits) {
    const Index step = state_.step;
    const auto skipped = skipped_;
    const Json spikes = history_.value("spikes", Json::array());
    restore(checkpoint());
    skipped_.insert(skipped.begin(), skipped.end());
    skipped_.insert(batch);
    history_["spikes"] = spikes;
    const std::string action = fmt::format("rolled back to step {}, batch {} skipped", state_.step, batch);
    history_["spikes"].push_back(
        {{"step", step}, {"loss", std::isfinite(bits) ? Json(bits) : Json()}, {"action", action}});
    fmt::print(stderr, "\nLoss spike of {:.2f} bits per byte in step {}: {}.\n", bits, step + 1, action);
    if (state_.step == last_rollback_)
      ++rollbacks_;
    else
      rollbacks_ = 1;
    last_rollback_ = state_.step;
    moe::detail::require<moe::DataError>(rollbacks_ < 5,
                                         "train_text: the loss spiked five times from the checkpoint of step ",
                                         state_.step, ". Lower --learning-rate, or look at the text.");
  }

  void save() {
    state_.seed = options_.seed;
    const Json run{{"configuration", configuration(options_, corpus_)},
                   {"skipped", skipped_},
                   {"detector", detector_.save()},
                   {"loss_scale", loss_scale_.save()},
                   {"history", history_}};
    moe::save_checkpoint(checkpoint(), model_.parameters, model_.buffers, optimizer_, state_,
                         {{"train_text", run.dump()}});
  }

  void restore(const std::string& path) {
    const Json run = run_of_checkpoint(path);
    const Json mine = configuration(options_, corpus_);
    for (const auto& [key, value] : run.at("configuration").items()) {
      moe::detail::require<moe::ConfigError>(mine.value(key, Json()) == value, "train_text: '", path,
                                             "' was made with ", key, " ", value.dump(), ", but this run has ",
                                             mine.value(key, Json()).dump(), ". Give the same options to go on.");
    }
    state_ = moe::load_checkpoint(path, model_.parameters, model_.buffers, optimizer_);
    skipped_ = run.at("skipped").get<std::set<Index>>();
    detector_.load(run.at("detector"));
    if (scales) loss_scale_.load(run.at("loss_scale"));
    history_ = run.at("history");
  }

  Json report(double seconds, double rate) {
    Json report = history_;
    report.update({{"configuration", configuration(options_, corpus_)},
                   {"model", options_.name()},
                   {"precision", options_.precision},
                   {"seed", options_.seed},
                   {"steps", state_.step},
                   {"tokens_per_step", options_.batch * options_.sequence},
                   {"seconds", seconds},
                   {"tokens_per_second", rate},
                   {"checkpoint", checkpoint()},
                   {"interrupted", state_.step < options_.steps},
                   {"time_shares", Stages::shares()},
                   {"memory_bytes", Stages::peak_bytes()}});
    if (state_.step < options_.steps) return report;
    if (options_.export_routing)
      write_routing_csv(options_.stem() + ".routing.csv", validation_.run(model_, ctx_, 1, state_.step));
    report.update(validation_.finish(model_, ctx_));
    report.update(sizes(model_, validation_.tape(), options_.sequence));
    return report;
  }

  Options options_;
  const Corpus& corpus_;
  moe::Context<Space> ctx_;
  Model model_;
  typename Model::Gradients gradients_;
  moe::AdamW<Parameters> optimizer_;
  moe::LossScale loss_scale_;  // for float16
  std::vector<moe::LoadStatistics<Space>> statistics_;
  Validation<Block> validation_;
  typename Model::Tape tape_;
  moe::TrainingState state_;
  SpikeDetector detector_;
  std::set<Index> skipped_;  // batches that spiked
  Json history_ = Json::object();
  double violation_ = 0;
  double aside_ = 0;  // seconds of validation
  Index last_rollback_ = -1;
  int rollbacks_ = 0;
};

}  // namespace text
