#pragma once
/// @file
/// `AdapterBank`: one frozen linear map and many resident adapters, of which each row of a batch names its own.

#include <algorithm>
#include <vector>

#include "moe/adapters/low_rank.hpp"
#include "moe/core/policy.hpp"
#include "moe/dispatch/plan.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/layers/detail/layer.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of an AdapterBank.
struct AdapterBankConfig {
  Index in = 0;             ///< width of rows x
  Index out = 0;            ///< width of rows y
  Index rank = 0;           ///< the most that an adapter has; those of less are padded with zeros
  Index adapters = 0;       ///< N: how many can be resident
  std::uint32_t layer = 0;  ///< number of the layer in its model: keys the draws of fresh adapters

  /// Throws ConfigError for sizes that cannot work.
  void check() const {
    detail::require<ConfigError>(in > 0 && out > 0 && rank > 0 && adapters > 0, "moe::AdapterBank: in ", in, ", out ",
                                 out, ", rank ", rank, ", adapters ", adapters, "; each must be 1 or more.");
  }
};

/// y(t) = W x(t) + b + s_n B_n A_n x(t), where row t names adapter n, or none (-1). W and b are views of the base's
/// arrays and stay as they are. A batch may mix all adapters, for inference (Chen et al. 2023, "Punica"; Sheng et al.
/// 2023, "S-LoRA") and for training them at once, one for each sample as in FLoRA (Wen and Chaudhuri 2023), whose
/// adapters multiply W element by element, where these are added. Rows are sorted by adapter as a MoE layer sorts
/// tokens by expert, but not moved.
///
///     moe::AdapterBank<> bank({.in = 4096, .out = 4096, .rank = 16, .adapters = 1000}, base);
///     const moe::Index slot = bank.add(ctx, a, b, alpha / r);     // a (r, in), b (out, r); r may be less than rank
///     auto y = bank.forward(ctx, batch, ids);                     // ids: slots, one a row or one a sequence
///     bank.evict(slot);
///
/// Policies, in any order: On<Space>, Precision<T>.
template <class... Policies>
class AdapterBank {
  static_assert(((detail::is_kind<Policies, kind::space, kind::precision>)&&...),
                "moe::AdapterBank: its arguments are On<Space> and Precision<...>.");

 public:
  using Config = AdapterBankConfig;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Ids = Vector<const std::int32_t, Space>;

  using Parameters = LowRank<Scalar, Space>;
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  struct Buffers {
    Vector<Real, Space> scaling;  ///< (N) s
    Vector<Index, Space> rank;    ///< (N) 0 where no adapter is resident
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("scaling", same.scaling...);
      f("rank", same.rank...);
    }
  };
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Assignments<Real, Space> assignments;  ///< one choice a row: its adapter
    DispatchPlan<Space> plan;
    Vector<Real, Space> scale;     ///< (R) s of a row's adapter
    Matrix<Scalar, Space> hidden;  ///< (R, rank) A x
    Matrix<Scalar, Space> y, dx;
  };

  Parameters parameters;
  Buffers buffers;

  /// `base` (out, in) and `bias` (out), or none: views, which must live as long as this.
  /// Throws ConfigError for sizes that cannot work, ShapeError where the base has others.
  AdapterBank(const Config& config, const Matrix<const Scalar, Space>& base,
              const Vector<const Scalar, Space>& bias = {})
      : config_(config), base_(base), bias_(bias) {
    config.check();
    detail::require<ShapeError>(Index(base.extent(0)) == config.out && Index(base.extent(1)) == config.in,
                                "moe::AdapterBank: the base's weight has shape (", base.extent(0), ", ", base.extent(1),
                                "), expected (out, in) = (", config.out, ", ", config.in, ").");
    detail::require<ShapeError>(!bias.is_allocated() || Index(bias.extent(0)) == config.out,
                                "moe::AdapterBank: the base's bias has ", bias.extent(0), " numbers for ", config.out,
                                " outputs.");
    const std::size_t n = config.adapters, r = config.rank;
    parameters.a = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::lora_A", n, r, std::size_t(config.in));
    parameters.b = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::lora_B", n, std::size_t(config.out), r);
    buffers.scaling = detail::allocate_zeros<Vector<Real, Space>>("moe::scaling", n);
    buffers.rank = detail::allocate_zeros<Vector<Index, Space>>("moe::rank", n);
    for (Index slot = config.adapters; slot-- > 0;) free_.push_back(slot);
    resident_.assign(n, 0);
  }

  AdapterBank(const AdapterBank&) = delete;
  AdapterBank& operator=(const AdapterBank&) = delete;
  AdapterBank(AdapterBank&&) = default;
  AdapterBank& operator=(AdapterBank&&) = default;

  const Config& config() const { return config_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }

  /// How many adapters are resident.
  Index resident() const { return config_.adapters - Index(free_.size()); }
  bool is_resident(Index slot) const { return slot >= 0 && slot < config_.adapters && resident_[slot] != 0; }

  /// Copies an adapter, a (r, in) and b (out, r) with r of at most `rank`, into a free slot, and says which: ids are
  /// slots. In stream order; a forward that runs sees the old bank or the new one, as the stream has it.
  /// Throws ConfigError where no slot is free, ShapeError where the adapter does not fit.
  Index add(Context<Space>& ctx, const Matrix<const Scalar, Space>& a, const Matrix<const Scalar, Space>& b,
            double scaling) {
    check_adapter(a, b);
    const Index slot = take_slot();
    write(ctx, slot, a, b, scaling);
    return slot;
  }
  /// A fresh adapter of rank r, to be trained: A drawn from N(0, 1 / in), B zeros, so that it starts as none.
  Index add(Context<Space>& ctx, Index r, double scaling, Seed seed);

  /// Writes another adapter over a resident one. Throws DataError where there is none, ShapeError as add.
  void replace(Context<Space>& ctx, Index slot, const Matrix<const Scalar, Space>& a,
               const Matrix<const Scalar, Space>& b, double scaling) {
    require_resident("replace", slot);
    check_adapter(a, b);
    write(ctx, slot, a, b, scaling);
  }

  /// Frees a slot. Rows that still name it are a DataError. Throws DataError where it is free already.
  void evict(Context<Space>& ctx, Index slot) {
    require_resident("evict", slot);
    resident_[slot] = 0;
    free_.push_back(slot);
    set(ctx, slot, 0, 0);
  }

  /// To be called once arrays were loaded into `parameters` and `buffers`: slots are taken where rank is not 0. Waits.
  void take_loaded(Context<Space>& ctx) {
    detail::refuse_capture(ctx.space, "moe::AdapterBank::take_loaded, which waits,", "Call it before.");
    ctx.space.fence("moe::AdapterBank::take_loaded");
    const auto rank = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, buffers.rank);
    free_.clear();
    for (Index slot = config_.adapters; slot-- > 0;) {
      resident_[slot] = rank(slot) > 0 ? 1 : 0;
      if (resident_[slot] == 0) free_.push_back(slot);
    }
  }

  /// y (T, out) for x (T, in). `ids` are slots or -1, one a row, or one a sequence where the batch has
  /// sequence_offsets; rows that the mask leaves out have none, and y = 0. Throws ShapeError where the batch does not
  /// fit; DataError for ids without a resident adapter (on host spaces; else at ctx.check()).
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Ids& ids,
                                Tape& tape) const;
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Ids& ids) const {
    return forward(ctx, batch, ids, ctx.template kept<Tape>(id_));
  }

  /// dx (T, in) for dy (T, out), the tape's; adds into the gradients of those adapters that have rows.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients) const;

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using M = Matrix<const Scalar, Space>;
  using W = Tensor3<const Scalar, Space>;

  Index take_slot() {
    detail::require<ConfigError>(!free_.empty(), "moe::AdapterBank::add: all ", config_.adapters,
                                 " slots are taken. Evict an adapter, or make the bank with more.");
    const Index slot = free_.back();
    free_.pop_back();
    resident_[slot] = 1;
    return slot;
  }
  void require_resident(const char* what, Index slot) const {
    detail::require<DataError>(is_resident(slot), "moe::AdapterBank::", what, ": no adapter is resident in slot ", slot,
                               " of ", config_.adapters, ".");
  }
  void check_rank(Index r) const {
    detail::require<ShapeError>(r > 0 && r <= config_.rank, "moe::AdapterBank: an adapter of rank ", r,
                                " for a bank of ranks 1 to ", config_.rank, ".");
  }
  void check_adapter(const M& a, const M& b) const {
    check_rank(Index(a.extent(0)));
    detail::require<ShapeError>(
        Index(a.extent(1)) == config_.in && Index(b.extent(0)) == config_.out && b.extent(1) == a.extent(0),
        "moe::AdapterBank: an adapter of A (", a.extent(0), ", ", a.extent(1), ") and B (", b.extent(0), ", ",
        b.extent(1), "), expected (r, ", config_.in, ") and (", config_.out, ", r).");
  }
  void set(Context<Space>& ctx, Index slot, Index rank, double scaling) const;
  void write(Context<Space>& ctx, Index slot, const M& a, const M& b, double scaling);
  kernels::LowRankRows<Scalar, Space> rows(const Tape& tape) const {
    return {tape.plan.expert_offsets, tape.plan.row_token, tape.scale, buffers.rank, tape.plan.rows};
  }

  Config config_;
  Matrix<const Scalar, Space> base_;
  Vector<const Scalar, Space> bias_;
  std::vector<Index> free_;  // the next one last
  std::vector<std::uint8_t> resident_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/adapters/detail/adapter_bank_passes.hpp"
