// Runs recorded cases of kernels against one target, linked directly: for sanitizers and for emulated processors.
//
//   runner CASES [THREADS]      prints what failed and how many cases ran; exit status 1 if one failed, 2: a bad file
//
// Before the cases it hands the ABI arguments that it must refuse. tests/native_cases.py writes the cases.
//
// CASES, all little-endian, nothing padded:
//   file:   8 bytes "LATCASE1", int32 number of cases, then the cases
//   case:   text label, text op, int32 T, R, S, float tolerance, int32 outputs, int32 tensors, the tensors,
//           int32 number of parameters, int32 each (as in a Record)
//   text:   int32 length, bytes
//   tensor: int32 dtype, layout, count, ndim; int64 shape[4]; int32 same; int64 size; size bytes
// Numbers of dtype, layout and count are those of abi.h. The last `outputs` tensors are outputs: their bytes are the
// expected values, up to the true count. `same` is the index of the tensor whose storage this one shares (an op that
// writes its input), or -1. size -1: an absent optional input. Bytes of layout tiles are rows as files hold them, and
// tiled here. Every tensor gets memory of exactly its size, so that a sanitizer sees any step beside it; of an input
// only the true count's rows exist. Rows of outputs past the true count must be left alone.
// |got - expected| <= tolerance * max(1, max |expected|); where only T leads, each row alone must give the same bits.
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
    if (int32_t(t.count) < -1 || int32_t(t.count) > 2) throw std::runtime_error(c.label + ": unknown count");
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
    case DType::i8: return 1;
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
    case DType::i8: return as(int8_t());
    case DType::i64: return double(as(int64_t()));
    default: return as(uint8_t());
  }
}

// Values of tensor i that the true count covers, and all of them.
struct Extent { int64_t used, all; };

Extent extent(const Case& c, size_t i) {
  const Tensor& t = c.tensors[i];
  int64_t row = 1;
  for (int32_t d = 1; d < t.ndim; ++d) row *= t.shape[d];
  const int64_t all = t.ndim ? row * t.shape[0] : 1;
  return {t.count == Count::constant ? all : row * c.counts[int(t.count)], all};
}

// Empty when `got` is as expected, else what is wrong.
std::string compare(const Case& c, size_t i, const char* got) {
  const Tensor& t = c.tensors[i];
  const int64_t bytes = element_bytes(t.dtype);
  const auto [used, all] = extent(c, i);
  double largest = 1;
  for (int64_t j = 0; j < used; ++j) {
    const double wanted = std::fabs(element(t.dtype, c.contents[i], j));
    if (std::isfinite(wanted) && wanted > largest) largest = wanted;
  }
  const bool exact = t.dtype == DType::i32 || t.dtype == DType::i64 || t.dtype == DType::i8;
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

// Memory for what a file holds, tiled where the tensor says so.
Memory fill(void* pool, const Tensor& t, const char* contents, int64_t size) {
  Memory plain(size);
  std::memcpy(plain.data, contents, size_t(size));
  if (t.layout == lattice::Layout::rows) return plain;
  const int64_t tiled = lattice_tiled_bytes(int32_t(t.dtype), t.shape[0], t.shape[1]);
  if (tiled < 0) throw std::runtime_error("a matrix that has no tiles");
  Memory tiles(tiled);
  std::memset(tiles.data, 0, size_t(tiled));
  const lattice::DType from = lattice::is_row(t.dtype) ? lattice::DType::f32 : t.dtype;   // rounded while tiling
  if (lattice_tile(pool, int32_t(from), plain.data, int32_t(t.dtype), t.shape[0], t.shape[1], tiles.data) < 0)
    throw std::runtime_error(lattice_error());
  return tiles;
}

// One plan of one record, run once; the message of a failure.
std::string run_record(void* pool, int32_t kernel, const std::vector<Tensor>& tensors, const Case& c,
                       const int32_t* counts) {
  const lattice::Record record{kernel, int32_t(tensors.size()), int32_t(c.parameters.size()), 0, tensors.data(),
                               c.parameters.data()};
  void* plan = lattice_plan_new(pool, &record, 1);
  const int32_t status = plan ? lattice_plan_run(&plan, counts, 1) : -1;
  lattice_plan_free(plan);
  return status < 0 ? lattice_error() : "";
}

// Whether the rows of a case can be run one by one: T leads all that varies, and nothing is written in place.
bool has_separate_rows(const Case& c) {
  for (size_t i = 0; i < c.tensors.size(); ++i)
    if (c.same[i] >= 0 || c.tensors[i].count == Count::R || c.tensors[i].count == Count::S) return false;
  return c.counts[0] > 1;
}

// Run the `row`-th row of a case alone: its bits must be those that it got beside the others.
std::string run_alone(void* pool, int32_t kernel, const Case& c, int32_t row) {
  std::vector<Tensor> tensors = c.tensors;
  std::vector<Memory> memory;
  const size_t inputs = tensors.size() - size_t(c.outputs);
  auto row_bytes = [&](size_t i) { return extent(c, i).all / tensors[i].shape[0] * element_bytes(tensors[i].dtype); };
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& t = tensors[i];
    if (t.count != Count::T || !t.data) continue;
    if (i < inputs) {
      t.data = static_cast<char*>(t.data) + row * row_bytes(i);
    } else {
      memory.emplace_back(row_bytes(i) * t.shape[0]);
      t.data = memory.back().data;
    }
  }
  const int32_t counts[3] = {1, c.counts[1], c.counts[2]};
  std::string wrong = run_record(pool, kernel, tensors, c, counts);
  for (size_t i = inputs; i < tensors.size() && wrong.empty(); ++i)
    if (std::memcmp(tensors[i].data, static_cast<char*>(c.tensors[i].data) + row * row_bytes(i), size_t(row_bytes(i))))
      wrong = "row " + std::to_string(row) + " has other bits alone";
  return wrong;
}

std::string run_checked(void* pool, Case& c) {
  const int32_t kernel = lattice_kernel(c.op.c_str());
  if (kernel < 0) return "no kernel";
  std::vector<Memory> memory;
  const size_t inputs = c.tensors.size() - size_t(c.outputs);
  for (size_t i = 0; i < c.tensors.size(); ++i) {
    Tensor& t = c.tensors[i];
    if (c.sizes[i] < 0) continue;
    if (c.same[i] >= 0) {
      t.data = c.tensors[size_t(c.same[i])].data;
    } else if (i < inputs) {
      memory.push_back(fill(pool, t, c.contents[i], c.sizes[i]));
      t.data = memory.back().data;
    } else {
      const int64_t bytes = extent(c, i).all * element_bytes(t.dtype);
      memory.emplace_back(bytes);
      t.data = memory.back().data;
      std::memset(t.data, untouched, size_t(bytes));
    }
  }
  std::string wrong = run_record(pool, kernel, c.tensors, c, c.counts);
  for (size_t i = inputs; i < c.tensors.size() && wrong.empty(); ++i)
    wrong = compare(c, i, static_cast<const char*>(c.tensors[i].data));
  if (has_separate_rows(c))
    for (int32_t row = 0; row < c.counts[0] && wrong.empty(); row += row < 7 ? 1 : 19)
      wrong = run_alone(pool, kernel, c, row);
  return wrong;
}

std::string run(void* pool, Case& c) {
  try {
    return run_checked(pool, c);
  } catch (const std::exception& error) {
    return error.what();
  }
}

// Arguments that the ABI must refuse, with a message.
int refusals(void* pool) {
  int failed = 0;
  auto refused = [&](const char* what, bool refusal) {
    if (refusal && *lattice_error()) return;
    ++failed;
    std::printf("FAILED to refuse %s\n", what);
  };
  float memory[64] = {};
  constexpr int32_t f32 = int32_t(DType::f32), i32 = int32_t(DType::i32);
  constexpr int32_t q8_0 = int32_t(DType::q8_0), q4_k = int32_t(DType::q4_k);
  refused("a name without a kernel", lattice_kernel("no such op") < 0);
  refused("a pool of no threads", !lattice_pool_new(0));
  refused("a pool of 10^6 threads", !lattice_pool_new(1000000));
  refused("to tile an integer matrix", lattice_tile(pool, i32, memory, i32, 2, 2, memory) < 0);
  refused("to tile an unknown dtype", lattice_tile(pool, 999, memory, -7, 2, 2, memory) < 0);
  refused("to tile half a block", lattice_tile(pool, q8_0, memory, q8_0, 1, 16, memory) < 0);
  refused("to tile an eighth of a block", lattice_tile(pool, q4_k, memory, q4_k, 1, 32, memory) < 0);
  refused("to tile no rows", lattice_tile(pool, f32, memory, f32, 0, 2, memory) < 0);
  refused("to tile -1 columns", lattice_tile(pool, f32, memory, f32, 2, -1, memory) < 0);
  refused("to tile f32 as blocks", lattice_tile(pool, f32, memory, q8_0, 1, 32, memory) < 0);

  Tensor tensors[3];
  for (Tensor& t : tensors) t = {memory, DType::f32, lattice::Layout::rows, Count::T, 2, {4, 2, 1, 1}};
  lattice::Record record{lattice_kernel("add"), 3, 0, 0, tensors, nullptr};
  auto no_plan = [&](const char* what, auto change) {
    Tensor kept[3];
    std::memcpy(kept, tensors, sizeof kept);
    lattice::Record changed = record;
    change(changed);
    void* plan = lattice_plan_new(pool, &changed, 1);
    refused(what, !plan);
    lattice_plan_free(plan);
    std::memcpy(tensors, kept, sizeof kept);
  };
  using Record = lattice::Record;
  refused("a plan without a pool", !lattice_plan_new(nullptr, &record, 1));
  refused("a plan of -1 records", !lattice_plan_new(pool, &record, -1));
  refused("a plan without records", !lattice_plan_new(pool, nullptr, 1));
  no_plan("kernel -1", [](Record& r) { r.kernel = -1; });
  no_plan("kernel 1000", [](Record& r) { r.kernel = 1000; });
  no_plan("a record without tensors", [](Record& r) { r.tensors = 0; });
  no_plan("a record of 10^6 tensors", [](Record& r) { r.tensors = 1000000; });
  no_plan("-1 parameters", [](Record& r) { r.parameters = -1; });
  no_plan("parameters at nullptr", [](Record& r) { r.parameters = 1; });
  no_plan("a tensor of 5 dimensions", [&](Record&) { tensors[1].ndim = 5; });
  no_plan("an unknown count", [&](Record&) { tensors[1].count = Count(3); });
  no_plan("a negative dimension", [&](Record&) { tensors[2].shape[1] = -1; });

  void* plan = lattice_plan_new(pool, &record, 1);
  void *twice[] = {plan, plan}, *none[] = {nullptr};
  const int32_t right[] = {4, 0, 0, 4, 0, 0}, large[] = {5, 0, 0}, negative[] = {-1, 0, 0};
  if (!plan || lattice_plan_run(&plan, right, 1) < 0) ++failed, std::printf("FAILED a plan that is right\n");
  refused("more rows than the capacity", lattice_plan_run(&plan, large, 1) < 0);
  refused("a negative count", lattice_plan_run(&plan, negative, 1) < 0);
  refused("one plan twice", lattice_plan_run(twice, right, 2) < 0);
  refused("no plan", lattice_plan_run(none, right, 1) < 0);
  lattice_plan_free(plan);
  lattice_plan_free(nullptr);
  return failed;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: runner CASES [THREADS]\n");
    return 2;
  }
  const int threads = count > 2 ? std::atoi(arguments[2]) : 2;
  int passed = 0, failed = 0;
  int32_t cases = 0;
  try {
    File file(arguments[1]);
    if (std::memcmp(file.take(8), "LATCASE1", 8) != 0) throw std::runtime_error("not a file of cases");
    void* pool = lattice_pool_new(threads);
    if (!pool) throw std::runtime_error(lattice_error());
    failed += refusals(pool);
    cases = file.number<int32_t>();
    for (int32_t i = 0; i < cases; ++i) {
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
  std::printf("%s: %d of %d cases passed, %d failed\n", lattice_target(), passed, int(cases), failed);
  return failed || !passed ? 1 : 0;
}
