#pragma once
/// @file
/// Memory in pages of 2 MiB where the system grants them: reading 4 KiB pages measures the translation of addresses
/// too.

#include <cstddef>
#include <memory>

#if __has_include(<sys/mman.h>)
#  include <sys/mman.h>
#endif

namespace bench {

/// Room for `count` numbers, not yet touched.
class Pages {
 public:
  explicit Pages(std::size_t count) : count_(count), room_(new char[count * sizeof(float) + page]) {
    void* start = room_.get();
    std::size_t space = count * sizeof(float) + page;
    data_ = static_cast<float*>(std::align(page, count * sizeof(float), start, space));
#if defined(MADV_HUGEPAGE)
    huge_ = madvise(data_, count * sizeof(float), MADV_HUGEPAGE) == 0;
#endif
  }

  float* data() const {
    return data_;
  }
  std::size_t count() const {
    return count_;
  }
  bool huge() const {
    return huge_;
  }  ///< the system took the advice

 private:
  static constexpr std::size_t page = std::size_t(2) << 20;
  std::size_t count_;
  std::unique_ptr<char[]> room_;
  float* data_ = nullptr;
  bool huge_ = false;
};

}  // namespace bench
