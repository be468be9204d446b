// What a kernel sees, and how it registers itself under the name of its op.
//
//   KERNEL(rms_norm, no_scratch) {
//     ...
//     call.tiles(rows, 4, [&](int64_t begin, int64_t end) { ... });
//   }
//
// Every thread of the pool runs the kernel's body; `tiles` hands out ranges from a shared counter, so a descheduled
// thread delays one range and not the step. Between two records the replay puts a barrier. A kernel in several phases
// calls `call.barrier()` between them, at most `max_phases - 1` times and on every thread alike.
#pragma once
#include <atomic>
#include <cstdint>

#include "abi.h"

namespace lattice {

class Pool;

constexpr int max_phases = 4;

struct Call {
  const Record& record;
  const int32_t* counts;                 // T, R, S of this step
  Pool& pool;
  int thread, threads;
  uint8_t* scratch;                      // shared by the threads, as many bytes as the kernel asked for, 64-byte aligned
  std::atomic<int64_t>* counters;        // one per phase, zero when the record starts
  int phase = 0;

  const Tensor& tensor(int i) const { return record.tensor[i]; }
  int64_t rows(int i) const {            // true leading size of tensor i in this step
    const Tensor& t = record.tensor[i];
    return t.count == Count::constant ? t.shape[0] : counts[int(t.count)];
  }
  int64_t width(int i) const {           // values of one row: the product of all dimensions but the first
    int64_t product = 1;
    for (int d = 1; d < record.tensor[i].ndim; ++d) product *= record.tensor[i].shape[d];
    return product;
  }
  template <class T> T* data(int i) const { return static_cast<T*>(record.tensor[i].data); }
  int32_t integer(int i) const { return record.parameter[i]; }
  float real(int i) const {
    float value;
    __builtin_memcpy(&value, record.parameter + i, 4);
    return value;
  }

  void barrier();                        // all threads; the next phase has a fresh counter

  // Call body(begin, end) for disjoint ranges of at most `grain` items that cover [0, items), shared among the threads.
  template <class Body> void tiles(int64_t items, int64_t grain, Body&& body) {
    for (;;) {
      int64_t begin = counters[phase].fetch_add(grain, std::memory_order_relaxed);
      if (begin >= items) return;
      body(begin, begin + grain < items ? begin + grain : items);
    }
  }
};

using KernelBody = void (*)(Call&);
using KernelScratch = int64_t (*)(const Record&, int threads);   // bytes needed at full capacity

struct Kernel {
  const char* name;
  KernelBody body;
  KernelScratch scratch;
  const Kernel* next;
};

struct Registration { explicit Registration(Kernel& kernel); };  // links the kernel into the table of plan.cpp

inline int64_t no_scratch(const Record&, int) { return 0; }

#define KERNEL(op, scratch_bytes)                                                   \
  static void op##_body(::lattice::Call& call);                                     \
  static ::lattice::Kernel op##_kernel{#op, op##_body, scratch_bytes, nullptr};     \
  static ::lattice::Registration op##_registration(op##_kernel);                    \
  static void op##_body(::lattice::Call& call)

}  // namespace lattice
