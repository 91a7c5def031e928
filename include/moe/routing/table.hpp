#pragma once
/// @file
/// Choice by a table: hash layers (Roller et al. 2021, "Hash layers for large sparse models") and task-level routing
/// (Kudugunta et al. 2021, "Beyond distillation"). The table is the router's buffer `table` (rows, k).

#include <vector>

#include "moe/routing/hash.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// Copies a table of shape (rows, k), row by row, into a router's buffer. Throws ShapeError where the sizes differ.
template <class View>
void assign_table(const View& table, const std::vector<ExpertId>& values) {
  detail::require<ShapeError>(values.size() == table.size(), "moe::assign_table: ", values.size(),
                              " values for a table of shape (", table.extent(0), ", ", table.extent(1), ").");
  if (values.empty()) return;
  const Kokkos::View<const ExpertId**, Kokkos::LayoutRight, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> host(
      values.data(), table.extent(0), table.extent(1));
  Kokkos::deep_copy(table, host);
}

/// What names a token's row of the table.
enum class TableKey { token_id, task };

/// Experts table(row, 0 to k - 1), where the row is the token's vocabulary id or its sequence's task. Ids outside the
/// table name no expert, which forward reports as a DataError.
///
/// A new router's table is random_hash(rows, experts, k, Seed{0}); see hash.hpp for others and `assign_table`.
template <int fixed_k = 1>
struct TableLookup {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool ignores_keys = true;
  Index table_rows = 0;  ///< the vocabulary's size, or the number of tasks
  TableKey key = TableKey::token_id;
  int k = fixed_k;

  Index choices() const { return k; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(table_rows > 0, "moe::TableLookup: a table of ", table_rows,
                                 " rows. Set table_rows to the vocabulary's size (or the number of tasks).");
    detail::require<ConfigError>(k > 0 && k <= shape.experts, "moe::TableLookup: cannot choose ", k, " of ",
                                 shape.experts, " experts.");
  }

  /// Throws ShapeError where the batch lacks what names the rows, or has not one for each token or sequence.
  template <class T, class Space>
  void check_batch(const Batch<T, Space>& batch) const {
    const bool by_id = key == TableKey::token_id;
    const auto& names = by_id ? batch.token_ids : batch.task_ids;
    detail::require<ShapeError>(names.is_allocated(), "moe::TableLookup: the batch has no ",
                                by_id ? "token_ids" : "task_ids",
                                ". Set Batch::", by_id ? "token_ids (one a token)." : "task_ids (one a sequence).");
    const Index wanted = by_id ? batch.tokens() : detail::groups(Scope::sequence(), batch).count;
    detail::require<ShapeError>(Index(names.extent(0)) == wanted, "moe::TableLookup: the batch has ", names.extent(0),
                                by_id ? " token_ids for " : " task_ids for ", wanted,
                                by_id ? " tokens." : " sequences.");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real>, Row<ExpertId> chosen, const TokenFacts& token) const {
    const Index row = key == TableKey::token_id ? token.id : token.task;
    const bool known = row >= 0 && row < table_rows;
    team.each(chosen.size, [&](Index i) { chosen[i] = known ? token.table[row * k + i] : ExpertId(-2); });
  }
};

MOE_NAMESPACE_END
