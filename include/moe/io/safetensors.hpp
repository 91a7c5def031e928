#pragma once
/// @file
/// The safetensors format: a reader that maps the file and checks every bound, and a writer that replaces files whole.
///
/// A file is: the header's length (u64, little-endian), the header (JSON: name -> dtype, shape, data_offsets), the
/// data.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "moe/core/bfloat16.hpp"
#include "moe/core/float16.hpp"
#include "moe/io/detail/file.hpp"
#include "moe/io/detail/json.hpp"

MOE_NAMESPACE_BEGIN

static_assert(std::endian::native == std::endian::little, "moe: safetensors files are read on little-endian machines.");

/// What a file says of one tensor.
struct TensorInfo {
  std::string dtype;               ///< "F32", "BF16", ...
  std::vector<Index> shape;        ///< empty for a scalar
  std::size_t begin = 0, end = 0;  ///< bytes in the data part

  Index elements() const {
    Index n = 1;
    for (Index extent : shape) n *= extent;
    return n;
  }
};

namespace detail {

/// Bytes of one element of a dtype, or 0 for a dtype that the format does not have.
inline std::size_t dtype_size(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

template <class T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, double>) return "F64";
  if constexpr (std::is_same_v<T, float>) return "F32";
  if constexpr (std::is_same_v<T, bfloat16>) return "BF16";
  if constexpr (std::is_same_v<T, float16>) return "F16";
  if constexpr (std::is_same_v<T, std::int64_t>) return "I64";
  if constexpr (std::is_same_v<T, std::int32_t>) return "I32";
  if constexpr (std::is_same_v<T, std::uint8_t>) return "U8";
}

/// Element i of a tensor of `dtype` as T.
template <class T>
T element(const std::byte* data, std::string_view dtype, Index i) {
  auto as = [&](auto sample) {
    std::memcpy(&sample, data + std::size_t(i) * sizeof(sample), sizeof(sample));
    return sample;
  };
  if (dtype == "F32") return T(as(float{}));
  if (dtype == "F64") return T(as(double{}));
  if (dtype == "BF16") return T(float(as(bfloat16{})));
  if (dtype == "F16") return T(float(as(float16{})));
  if (dtype == "I64") return T(as(std::int64_t{}));
  if (dtype == "I32") return T(as(std::int32_t{}));
  if (dtype == "I16") return T(as(std::int16_t{}));
  if (dtype == "I8") return T(as(std::int8_t{}));
  return T(as(std::uint8_t{}));
}

inline bool convertible_dtype(std::string_view dtype, bool to_integer) {
  const bool integer =
      dtype == "I64" || dtype == "I32" || dtype == "I16" || dtype == "I8" || dtype == "U8" || dtype == "BOOL";
  const bool real = dtype == "F64" || dtype == "F32" || dtype == "F16" || dtype == "BF16";
  return to_integer ? integer : real;
}

inline std::string shape_text(const std::vector<Index>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

template <class View>
std::vector<Index> shape_of(const View& view) {
  std::vector<Index> shape;
  for (std::size_t r = 0; r < View::rank(); ++r) shape.push_back(Index(view.extent(r)));
  return shape;
}

}  // namespace detail

/// A safetensors file, mapped. Everything in the header is checked on opening; errors are IoError with file and tensor.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path) : path_(path), file_(path) {
    const auto bytes = file_.bytes();
    require(bytes.size() >= 8, "has ", bytes.size(),
            " bytes; a safetensors file has at least 8. Is the download complete?");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    require(length <= bytes.size() - 8, "claims a header of ", length, " bytes, but has only ", bytes.size() - 8,
            " after the length. Is the download complete, and is it safetensors?");
    data_ = bytes.subspan(8 + std::size_t(length));
    detail::Json header;
    try {
      header = detail::JsonParser({reinterpret_cast<const char*>(bytes.data()) + 8, std::size_t(length)}).parse();
    } catch (const IoError& error) {
      require(false, "has a bad header: ", error.what(), ".");
    }
    require(header.kind == detail::Json::Kind::object, "has a header that is no JSON object.");
    for (const auto& [name, entry] : header.object) {
      if (name == "__metadata__") {
        read_metadata(entry);
      } else {
        tensors_.emplace(name, read_info(name, entry));
      }
    }
    check_overlap();
  }

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }

  const TensorInfo& info(const std::string& name) const {
    const auto found = tensors_.find(name);
    require(found != tensors_.end(), "holds no tensor '", name, "' among its ", tensors_.size(), ".");
    return found->second;
  }

  /// The raw bytes of a tensor, in the mapped file.
  std::span<const std::byte> bytes(const std::string& name) const {
    const TensorInfo& tensor = info(name);
    return data_.subspan(tensor.begin, tensor.end - tensor.begin);
  }

  /// All elements as T, row-major. Floating dtypes convert to floating T, integers to integers.
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const TensorInfo& tensor = info(name);
    check_convertible<T>(name, tensor);
    std::vector<T> result(std::size_t(tensor.elements()));
    const std::byte* data = data_.data() + tensor.begin;
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = detail::element<T>(data, tensor.dtype, Index(i));
    return result;
  }

  /// Throws unless `name` is there with the view's shape and a dtype that converts.
  template <class View>
  void check(const std::string& name, const View& view) const {
    const TensorInfo& tensor = info(name);
    check_convertible<typename View::non_const_value_type>(name, tensor);
    detail::require<ShapeError>(tensor.shape == detail::shape_of(view), "moe: '", path_, "': tensor '", name,
                                "' has shape ", detail::shape_text(tensor.shape), ", expected ",
                                detail::shape_text(detail::shape_of(view)), ".");
  }

  /// Copies a tensor into a view of the same shape. Nothing is written where it does not fit.
  template <class View>
  void read(const std::string& name, const View& view) const {
    using T = typename View::non_const_value_type;
    check(name, view);
    std::vector<T> values = read<T>(name);
    using Host = Kokkos::View<T*, Kokkos::LayoutRight, Kokkos::HostSpace, Kokkos::MemoryUnmanaged>;
    Kokkos::deep_copy(detail::flat(view), Host(values.data(), values.size()));
  }

 private:
  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    detail::require<IoError>(condition, "moe: '", path_, "' ", parts...);
  }

  template <class T>
  void check_convertible(const std::string& name, const TensorInfo& tensor) const {
    require(detail::convertible_dtype(tensor.dtype, std::is_integral_v<T>), "tensor '", name, "' has dtype ",
            tensor.dtype, ", which does not convert to ", detail::dtype_name<T>(), ".");
  }

  void read_metadata(const detail::Json& entry) {
    require(entry.kind == detail::Json::Kind::object, "has __metadata__ that is no JSON object.");
    for (const auto& [key, value] : entry.object) {
      require(value.kind == detail::Json::Kind::string, "has metadata '", key, "' that is no string.");
      metadata_.emplace(key, value.string);
    }
  }

  TensorInfo read_info(const std::string& name, const detail::Json& entry) const {
    using Kind = detail::Json::Kind;
    auto member = [&](const char* key, Kind kind) -> const detail::Json& {
      const auto found = entry.object.find(key);
      require(found != entry.object.end() && found->second.kind == kind, "tensor '", name, "' lacks a proper ", key,
              ".");
      return found->second;
    };
    TensorInfo tensor;
    tensor.dtype = member("dtype", Kind::string).string;
    const std::size_t size = detail::dtype_size(tensor.dtype);
    require(size != 0, "tensor '", name, "' has dtype ", tensor.dtype, ", which this reader does not know.");
    std::uint64_t total = size;
    for (const detail::Json& extent : member("shape", Kind::array).array) {
      require(extent.kind == Kind::number && extent.number <= std::uint64_t(INT64_MAX) &&
                  (extent.number == 0 || total <= std::uint64_t(INT64_MAX) / extent.number),
              "tensor '", name, "' has a shape that passes 2^63 bytes.");
      total *= extent.number;
      tensor.shape.push_back(Index(extent.number));
    }
    const auto& offsets = member("data_offsets", Kind::array).array;
    require(offsets.size() == 2 && offsets[0].kind == Kind::number && offsets[1].kind == Kind::number, "tensor '", name,
            "' needs two data_offsets.");
    const std::uint64_t begin = offsets[0].number, end = offsets[1].number;
    require(begin <= end && end <= data_.size(), "tensor '", name, "' lies at bytes ", begin, " to ", end, " of ",
            data_.size(), ". Is the download complete?");
    require(end - begin == total, "tensor '", name, "' of ", tensor.dtype, " ", detail::shape_text(tensor.shape),
            " needs ", total, " bytes, but has ", end - begin, ".");
    tensor.begin = std::size_t(begin);
    tensor.end = std::size_t(end);
    return tensor;
  }

  void check_overlap() const {
    std::vector<std::pair<std::size_t, std::size_t>> ranges;
    for (const auto& [name, tensor] : tensors_) ranges.emplace_back(tensor.begin, tensor.end);
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
      require(ranges[i].first >= ranges[i - 1].second, "holds tensors that overlap at byte ", ranges[i].first, ".");
  }

  std::string path_;
  detail::MappedFile file_;
  std::span<const std::byte> data_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Gathers tensors and writes them as one file, which replaces an old one only when complete.
class SafetensorsWriter {
 public:
  /// A copy of the array is kept, row-major. Throws IoError for a name that is there already.
  template <class View>
  void add(const std::string& name, const View& view) {
    using T = typename View::non_const_value_type;
    std::vector<std::byte> bytes(view.size() * sizeof(T));
    using Host = Kokkos::View<T*, Kokkos::LayoutRight, Kokkos::HostSpace, Kokkos::MemoryUnmanaged>;
    Kokkos::deep_copy(Host(reinterpret_cast<T*>(bytes.data()), view.size()), detail::flat(view));
    add(name, detail::dtype_name<T>(), detail::shape_of(view), std::move(bytes));
  }
  template <class T>
  void add(const std::string& name, const std::vector<Index>& shape, std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    add(name, detail::dtype_name<std::remove_const_t<T>>(), shape, {bytes.begin(), bytes.end()});
  }
  void metadata(const std::string& key, const std::string& value) { metadata_[key] = value; }

  void write(const std::string& path) const {
    std::string header = "{\"__metadata__\":{";
    const char* comma = "";
    for (const auto& [key, value] : metadata_) {
      header.append(comma).append(detail::json_quote(key)).append(":").append(detail::json_quote(value));
      comma = ",";
    }
    header += "}";
    std::size_t at = 0;
    for (const auto& [name, tensor] : tensors_) {
      header.append(",").append(detail::json_quote(name)).append(":{\"dtype\":\"").append(tensor.dtype);
      header.append("\",\"shape\":[");
      for (std::size_t i = 0; i < tensor.shape.size(); ++i)
        header.append(i ? "," : "").append(std::to_string(tensor.shape[i]));
      header.append("],\"data_offsets\":[").append(std::to_string(at)).append(",");
      header.append(std::to_string(at + tensor.bytes.size())).append("]}");
      at += tensor.bytes.size();
    }
    header += "}";
    header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');  // the data starts at a multiple of 64 bytes
    const std::uint64_t length = header.size();

    detail::AtomicFile file(path);
    file.write(std::as_bytes(std::span(&length, 1)));
    file.write(std::as_bytes(std::span(header)));
    for (const auto& [name, tensor] : tensors_) file.write(tensor.bytes);
    file.commit();
  }

 private:
  struct Tensor {
    std::string dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;
  };

  void add(const std::string& name, const char* dtype, std::vector<Index> shape, std::vector<std::byte> bytes) {
    std::size_t expected = detail::dtype_size(dtype);
    for (Index extent : shape) expected *= std::size_t(extent);
    detail::require<ShapeError>(expected == bytes.size(), "moe::SafetensorsWriter: tensor '", name, "' of shape ",
                                detail::shape_text(shape), " needs ", expected, " bytes, got ", bytes.size(), ".");
    const bool fresh = tensors_.emplace(name, Tensor{dtype, std::move(shape), std::move(bytes)}).second;
    detail::require<IoError>(fresh, "moe::SafetensorsWriter: two tensors are named '", name, "'.");
  }

  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

MOE_NAMESPACE_END
