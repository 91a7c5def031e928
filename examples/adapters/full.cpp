/// @file
/// The base model as it is, and trained as a whole: what adapters are measured against.
#include "adaptation.hpp"

namespace adapt {
namespace {

using Whole = Adaptation<text::BlockOf<text::DenseFeedForward>, Everything<BaseModel>>;

}  // namespace

Json run_frozen(const Task& task) {
  return Whole(task, load_base(task)).run(0);
}

Json run_full(const Task& task) {
  return Whole(task, load_base(task)).run(task.settings.steps);
}

}  // namespace adapt
