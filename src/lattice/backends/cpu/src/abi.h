// The boundary between Python and the native core: every struct and function that crosses it, and nothing else.
//
// A plan is a list of records, one per program node. A record names a kernel and lists the node's tensors in order:
// the op's inputs, then its outputs; an optional input that is absent has data == nullptr; a Step or Sampling input is
// expanded to its fields, in the order of the Python dataclass (see StepField). After the tensors comes one parameter
// block: the op's attributes in declaration order, four bytes each (int32, float32, bool and enumerations as int32).
// The same convention serves every op, so there is no glue per op on either side.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define LATTICE_API extern "C" __declspec(dllexport)
#else
#define LATTICE_API extern "C" __attribute__((visibility("default")))
#endif

namespace lattice {

// Storage of one element or block. The numbers are mirrored in cpu/native.py.
enum class DType : int32_t {
  f32 = 0, f16 = 1, bf16 = 2, i32 = 3, q8_0 = 4, q4_1 = 5, i64 = 6,
  q4_0 = 7, q5_0 = 8, q5_1 = 9, q4_k = 10, q5_k = 11, q6_k = 12, i8 = 13,
  row8 = 14, row16 = 15   // tiles only: integers with one scale a row (rows.h)
};

// rows: row-major, as files hold it. tiles: panels of 16 rows (see tiles.h), what the linear kernel reads.
enum class Layout : int32_t { rows = 0, tiles = 1 };

// Which count the leading dimension of a tensor follows. constant: shape[0] is the size itself.
enum class Count : int32_t { constant = -1, T = 0, R = 1, S = 2 };

enum class Activation : int32_t { none = -1, silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, sigmoid = 4 };
enum class Pooling : int32_t { mean = 0, cls = 1, last = 2 };
enum class Norm : int32_t { none = -1, rms = 0, layer = 1 };

// Fields of a Step, in order, as they appear among a record's tensors. All int32.
enum StepField { tokens, token_types, positions, offsets, rows, page_table, slots, adapters, saves, step_fields };
// tokens, token_types, positions, adapters, saves: (T,); offsets: (S + 1,); rows: (R,); page_table: (S, width); slots: (S,)

constexpr int page_tokens = 64;  // positions of one K/V page

struct Tensor {
  void* data;        // nullptr: an absent optional input
  DType dtype;
  Layout layout;
  Count count;
  int32_t ndim;
  int64_t shape[4];  // shape[0] is the capacity when count is not constant
};

struct Record {
  int32_t kernel;      // from lattice_kernel()
  int32_t tensors;     // how many
  int32_t parameters;  // how many four-byte parameters
  int32_t reserved;
  const Tensor* tensor;
  const int32_t* parameter;
};

// What a compute pass of wgpu-native is recorded with, and one kernel of a step on a card.
struct PassFunctions {
  void (*set_pipeline)(void* pass, void* pipeline);
  void (*set_group)(void* pass, uint32_t index, void* group, size_t offsets, const uint32_t* offset);
  void (*dispatch)(void* pass, uint32_t x, uint32_t y, uint32_t z);
};

struct Command {
  void* pipeline;
  void* group;
  uint32_t x, y, z, reserved;
};

// What a buffer of a card is read with: wgpu-native's functions, and its numbers for "when events are processed",
// "to read" and "it is mapped".
struct Text {
  const char* data;
  size_t length;
};

struct MapCallback {
  void* next;
  uint32_t mode;
  void (*told)(uint32_t status, Text message, void* answer, void* unused);
  void* answer;
  void* unused;
};

struct Future {
  uint64_t id;
};

struct ReadFunctions {
  Future (*map)(void* buffer, uint64_t mode, size_t offset, size_t size, MapCallback callback);
  uint32_t (*poll)(void* device, uint32_t wait, const uint64_t* submission);
  const void* (*mapped)(void* buffer, size_t offset, size_t size);
  void (*unmap)(void* buffer);
  uint64_t process_events, read, success;
};

}  // namespace lattice

// ---- what Python calls -------------------------------------------------------------------------------------------
// Functions that can fail return nullptr or a negative number and put a message into lattice_error().
LATTICE_API const char* lattice_error(void);                  // last error of this thread
LATTICE_API const char* lattice_target(void);                 // this library's target: "scalar", "avx2", "avx512", ...
LATTICE_API const char* lattice_runnable_targets(void);       // by this processor, the fastest last; only asked of "scalar"

// Zeroed memory, 64-byte aligned; huge: asks for huge pages, for what is read as a whole.
LATTICE_API void* lattice_alloc(int64_t bytes, int32_t huge);
LATTICE_API void lattice_free(void* memory, int64_t bytes);

LATTICE_API void* lattice_pool_new(int32_t threads);          // threads - 1 workers; the caller is the last one
LATTICE_API void lattice_pool_free(void* pool);

LATTICE_API int32_t lattice_kernel(const char* name);         // number of the kernel of an op, -1: this backend has none

// Tile a row-major (n, k) matrix of `dtype` for the linear kernel, in parallel. Plain dtypes may be tiled as another,
// such as f32 narrowed to f16, or rounded to row8 and row16.
LATTICE_API int64_t lattice_tiled_bytes(int32_t dtype, int64_t n, int64_t k);
LATTICE_API int32_t lattice_tile(void* pool, int32_t from, const void* source, int32_t to, int64_t n, int64_t k, void* tiles);

LATTICE_API void* lattice_plan_new(void* pool, const lattice::Record* records, int32_t count);
LATTICE_API void lattice_plan_free(void* plan);
// Run `plans` one after another as one call; counts: 3 int32 (T, R, S) per plan.
LATTICE_API int32_t lattice_plan_run(void* const* plans, const int32_t* counts, int32_t number);
// The same for one plan, adding the seconds of each record to `seconds` (as many as records).
LATTICE_API int32_t lattice_plan_profile(void* plan, const int32_t* counts, double* seconds);

// Records `count` commands into a compute pass.
LATTICE_API void lattice_replay(void* pass, const lattice::PassFunctions* functions, const lattice::Command* commands,
                                int32_t count);
// Copies to `out` what a submission left in a buffer; 1, or 0 where the card gave no answer. Everything in one call: an
// interrupt of Python's between two of them would leave wgpu-native an answer to write that nobody holds any more.
LATTICE_API int32_t lattice_read_mapped(const lattice::ReadFunctions* functions, void* device, void* buffer,
                                        uint64_t size, uint64_t submission, void* out);

LATTICE_API double lattice_read_bandwidth(void* pool, int64_t bytes);  // bytes per second of a plain parallel read
LATTICE_API double lattice_integer_peak(void* pool);   // products of bytes a second of all threads, nothing fetched or scaled
