#pragma once
/// @file
/// Files as this room needs them: mapped for reading, written whole or not at all.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "moe/core/error.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

[[noreturn]] inline void io_failure(const std::string& path, const char* what) {
  throw IoError(sentence("moe: cannot ", what, " '", path, "': ", std::strerror(errno), "."));
}

/// A file mapped read-only for the object's life.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) io_failure(path, "open");
    struct stat status {};
    if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(file);
      throw IoError(sentence("moe: '", path, "' is not a regular file."));
    }
    size_ = std::size_t(status.st_size);
    void* address = size_ == 0 ? nullptr : ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    ::close(file);
    if (address == MAP_FAILED) io_failure(path, "map");
    data_ = static_cast<const std::byte*>(address);
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A file that appears under its name only when complete: written beside it, synced, renamed. Without commit() it
/// vanishes.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path) : path_(path), temporary_(path + ".XXXXXX") {
    file_ = ::mkstemp(temporary_.data());
    if (file_ < 0) io_failure(path, "create");
    const mode_t mask = ::umask(0);  // mkstemp gives 0600; a model is a file like any other
    ::umask(mask);
    ::fchmod(file_, 0666 & ~mask);
  }
  ~AtomicFile() {
    if (file_ < 0) return;
    ::close(file_);
    ::unlink(temporary_.c_str());
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(file_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) io_failure(path_, "write");
      bytes = bytes.subspan(std::size_t(written));
    }
  }

  void commit() {
    if (::fsync(file_) != 0) io_failure(path_, "sync");
    if (::close(std::exchange(file_, -1)) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      ::unlink(temporary_.c_str());
      errno = error;
      io_failure(path_, "write");
    }
    const std::size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    if (const int directory = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC); directory >= 0) {
      ::fsync(directory);
      ::close(directory);
    }
  }

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

}  // namespace detail

MOE_NAMESPACE_END
