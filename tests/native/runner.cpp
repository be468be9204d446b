// Runs recorded cases of kernels against one target, linked directly: for sanitizers and for emulated processors.
//
//   runner CASES [THREADS]      prints "N passed, N failed"; exit status 1 when a case failed, 2 for a bad file
//
// CASES, all little-endian, nothing padded:
//   file:   8 bytes "LATCASE1", int32 number of cases, then the cases
//   case:   text label, text op, int32 T, R, S, float tolerance, int32 outputs, int32 tensors, the tensors,
//           int32 number of parameters, int32 each (as in a Record)
//   text:   int32 length, bytes
//   tensor: int32 dtype, layout, count, ndim; int64 shape[4]; int32 same; int64 size; size bytes
// Numbers of dtype, layout and count are those of abi.h. The last `outputs` tensors are outputs: their bytes are the
// expected values. `same` is the index of the tensor whose storage this one shares (an op that writes its input), or
// -1. size -1: an absent optional input. Every tensor gets memory of exactly its size, so that a sanitizer sees any
// step beside it. Rows past the true count must be left alone. |got - expected| <= tolerance * max(1, max |expected|).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"
#include "simd.h"
#include "tiles.h"

namespace {

using lattice::Count;
using lattice::DType;
using lattice::Tensor;

constexpr unsigned char untouched = 0xA5;

struct File {
  std::vector<char> bytes;
  size_t at = 0;

  explicit File(const char* path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error(std::string("cannot read ") + path);
    bytes.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  const char* take(int64_t size) {
    if (size < 0 || uint64_t(size) > bytes.size() - at) throw std::runtime_error("the file ends early");
    at += size_t(size);
    return bytes.data() + at - size_t(size);
  }
  template <class T> T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const int32_t size = number<int32_t>();
    return std::string(take(size), size_t(size));
  }
};

// Memory of exactly `size` bytes at a multiple of 64.
struct Memory {
  void* data;
  explicit Memory(int64_t size) : data(::operator new(size_t(size), std::align_val_t(64))) {}
  Memory(Memory&& other) noexcept : data(other.data) { other.data = nullptr; }
  ~Memory() { ::operator delete(data, std::align_val_t(64)); }
};

struct Case {
  std::string label, op;
  int32_t counts[3];
  float tolerance;
  int32_t outputs;
  std::vector<Tensor> tensors;
  std::vector<int64_t> sizes;
  std::vector<int32_t> same;
  std::vector<const char*> contents;     // of inputs, or what outputs should hold
  std::vector<int32_t> parameters;
};

Case read_case(File& file) {
  Case c;
  c.label = file.text();
  c.op = file.text();
  for (int32_t& count : c.counts) count = file.number<int32_t>();
  c.tolerance = file.number<float>();
  c.outputs = file.number<int32_t>();
  const int32_t tensors = file.number<int32_t>();
  for (int32_t i = 0; i < tensors; ++i) {
    Tensor t{};
    t.dtype = DType(file.number<int32_t>());
    t.layout = lattice::Layout(file.number<int32_t>());
    t.count = Count(file.number<int32_t>());
    t.ndim = file.number<int32_t>();
    for (int64_t& d : t.shape) d = file.number<int64_t>();
    c.same.push_back(file.number<int32_t>());
    c.sizes.push_back(file.number<int64_t>());
    c.contents.push_back(c.sizes.back() < 0 ? nullptr : file.take(c.sizes.back()));
    if (c.same.back() >= i) throw std::runtime_error(c.label + ": `same` must name an earlier tensor");
    c.tensors.push_back(t);
  }
  if (c.outputs < 1 || c.outputs > tensors) throw std::runtime_error(c.label + ": no outputs");
  const int32_t parameters = file.number<int32_t>();
  for (int32_t i = 0; i < parameters; ++i) c.parameters.push_back(file.number<int32_t>());
  return c;
}

int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::f16: case DType::bf16: return 2;
    case DType::i64: return 8;
    default: return lattice::is_block(dtype) ? 1 : 4;
  }
}

double element(DType dtype, const char* data, int64_t i) {
  auto as = [&](auto value) {
    std::memcpy(&value, data + i * int64_t(sizeof value), sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::f32: return as(float());
    case DType::f16: return lattice::from_f16(as(uint16_t()));
    case DType::bf16: return lattice::from_bf16(as(uint16_t()));
    case DType::i32: return as(int32_t());
    case DType::i64: return double(as(int64_t()));
    default: return as(uint8_t());
  }
}

// Empty when `got` is as expected, else what is wrong.
std::string compare(const Case& c, size_t i, const char* got) {
  const Tensor& t = c.tensors[i];
  const int64_t bytes = element_bytes(t.dtype), all = c.sizes[i] / bytes;
  int64_t used = all;
  if (t.count != Count::constant && c.same[i] < 0 && t.shape[0] > 0)
    used = all / t.shape[0] * c.counts[int(t.count)];
  double largest = 1;
  for (int64_t j = 0; j < used; ++j) {
    const double wanted = std::fabs(element(t.dtype, c.contents[i], j));
    if (std::isfinite(wanted) && wanted > largest) largest = wanted;
  }
  const bool exact = t.dtype == DType::i32 || t.dtype == DType::i64;
  for (int64_t j = 0; j < used; ++j) {
    const double x = element(t.dtype, got, j), y = element(t.dtype, c.contents[i], j);
    const bool equal = x == y || (std::isnan(x) && std::isnan(y));
    if (!equal && (exact || !(std::fabs(x - y) <= double(c.tolerance) * largest)))
      return "value " + std::to_string(j) + " is " + std::to_string(x) + ", expected " + std::to_string(y);
  }
  for (int64_t j = used * bytes; j < all * bytes; ++j)
    if (static_cast<unsigned char>(got[j]) != untouched) return "a row past the count was written";
  return "";
}

std::string run(void* pool, Case& c) {
  const int32_t kernel = lattice_kernel(c.op.c_str());
  if (kernel < 0) return "no kernel";
  std::vector<Memory> memory;
  const size_t inputs = c.tensors.size() - size_t(c.outputs);
  memory.reserve(c.tensors.size());
  for (size_t i = 0; i < c.tensors.size(); ++i) {
    Tensor& t = c.tensors[i];
    if (c.sizes[i] < 0) continue;
    if (c.same[i] >= 0) {
      t.data = c.tensors[size_t(c.same[i])].data;
      continue;
    }
    memory.emplace_back(c.sizes[i]);
    t.data = memory.back().data;
    if (i < inputs) std::memcpy(t.data, c.contents[i], size_t(c.sizes[i]));
    else std::memset(t.data, untouched, size_t(c.sizes[i]));
  }
  const lattice::Record record{kernel, int32_t(c.tensors.size()), int32_t(c.parameters.size()), 0, c.tensors.data(),
                               c.parameters.data()};
  void* plan = lattice_plan_new(pool, &record, 1);
  const int32_t status = plan ? lattice_plan_run(&plan, c.counts, 1) : -1;
  std::string wrong = status < 0 ? lattice_error() : "";
  lattice_plan_free(plan);
  for (size_t i = inputs; i < c.tensors.size() && wrong.empty(); ++i)
    wrong = compare(c, i, static_cast<const char*>(c.tensors[i].data));
  return wrong;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: runner CASES [THREADS]\n");
    return 2;
  }
  int passed = 0, failed = 0;
  try {
    File file(arguments[1]);
    if (std::memcmp(file.take(8), "LATCASE1", 8) != 0) throw std::runtime_error("not a file of cases");
    void* pool = lattice_pool_new(count > 2 ? std::atoi(arguments[2]) : 2);
    if (!pool) throw std::runtime_error(lattice_error());
    for (int32_t left = file.number<int32_t>(); left > 0; --left) {
      Case c = read_case(file);
      const std::string wrong = run(pool, c);
      if (wrong.empty()) {
        ++passed;
      } else {
        ++failed;
        std::printf("FAILED %s: %s\n", c.label.c_str(), wrong.c_str());
      }
    }
    lattice_pool_free(pool);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[1], error.what());
    return 2;
  }
  std::printf("%s: %d passed, %d failed\n", lattice_target(), passed, failed);
  return failed ? 1 : 0;
}
