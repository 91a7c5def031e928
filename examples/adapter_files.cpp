// Adapters as files: Hugging Face PEFT folders read, their updates merged into a weight, truncated and written again.
//
//     adapter_files                            makes two adapters of its own in a temporary folder
//     adapter_files OUT MODULE RANK FOLDER...  sums the FOLDERs' updates of MODULE, each with weight 1 / their number
#include <cstdio>
#include <filesystem>
#include <moe/adapters/merge.hpp>
#include <moe/adapters/truncate.hpp>
#include <moe/io/peft_writer.hpp>
#include <moe/moe.hpp>

namespace {

/// Two adapters of ranks 4 and 8 for a map from 96 to 64.
std::vector<std::string> make_adapters(const std::string& folder, const std::string& module) {
  std::vector<std::string> folders;
  for (moe::Index rank : {4, 8}) {
    moe::LowRank<float> update{moe::Tensor3<float>("a", 1, rank, 96), moe::Tensor3<float>("b", 1, 64, rank)};
    moe::fill_normal(moe::Context<>::execution_space{}, update.a, moe::Seed{1}, 0.1, std::uint32_t(rank));
    moe::fill_normal(moe::Context<>::execution_space{}, update.b, moe::Seed{2}, 0.1, std::uint32_t(rank));

    moe::PeftWriter writer;
    writer.base_model("my-base-model");
    writer.add(module, update, 0, 16.0 / double(rank));  // adapter 0; scaling alpha / r
    folders.push_back(folder + "/rank" + std::to_string(rank));
    writer.write(folders.back());
  }
  return folders;
}

void run(const std::string& out, const std::string& module, moe::Index rank, const std::vector<std::string>& folders) {
  moe::Context ctx;
  std::vector<moe::PeftAdapter> adapters;
  for (const std::string& folder : folders) adapters.emplace_back(folder);
  const auto updates = moe::stack_adapters<float>(adapters, module);  // scalings are in B
  std::printf("%s: %d adapters of rank %d, from %d to %d\n", module.c_str(), int(updates.adapters()),
              int(updates.rank()), int(updates.in()), int(updates.out()));

  std::vector<moe::WeightedUpdate> sum;
  for (moe::Index n = 0; n < updates.adapters(); ++n) sum.push_back({n, 1.0 / double(updates.adapters())});

  moe::Matrix<float> weight("weight", updates.out(), updates.in());  // the base model's
  moe::fill_normal(ctx.space, weight, moe::Seed{3});
  moe::MergedWeight merged(weight);
  merged.merge(ctx, updates, sum);
  // ... inference at the plain weight's cost ...
  merged.unmerge(ctx);  // the bits from before

  const auto truncated = moe::truncate(ctx, updates, sum, rank);
  std::printf("their mean at rank %d: relative error %.3f; at most 0.1 takes rank %d\n", int(rank),
              truncated.relative_error, int(moe::rank_within(truncated.singular_values, 0.1)));

  moe::PeftWriter writer;
  writer.base_model(adapters.front().config().base_model);
  writer.add(module, truncated.update, 0, 1.0);
  writer.write(out);
  std::printf("wrote %s\n", out.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  Kokkos::ScopeGuard kokkos(argc, argv);
  if (argc > 4) {
    run(argv[1], argv[2], std::stol(argv[3]), {argv + 4, argv + argc});
    return 0;
  }
  if (argc > 1) {
    std::fprintf(stderr, "adapter_files OUT MODULE RANK FOLDER..., or nothing: it then makes adapters of its own.\n");
    return 2;
  }
  const std::string folder = std::filesystem::temp_directory_path() / "moe_adapter_files";
  std::filesystem::remove_all(folder);
  run(folder + "/mean", "layers.0.q_proj", 6, make_adapters(folder, "layers.0.q_proj"));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
