// Plans: what lattice_plan_new copies, and the replay that runs it; and the small functions of the ABI.
//
// Every thread walks the same list of records: body, barrier, body, barrier ... Work is divided inside the bodies, from
// one shared counter per record and phase. The counters of a plan are zero whenever no run is under way: thread 0 clears
// them after the last barrier, which costs less than clearing each one at its use.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"
#include "kernel.h"
#include "platform.h"
#include "pool.h"

#ifndef LATTICE_TARGET
#define LATTICE_TARGET "scalar"
#endif

namespace lattice {

static thread_local std::string last_error;

int32_t fail(const std::string& message) {
  last_error = message;
  return -1;
}

namespace {

// Run `body`, which may throw (memory, threads); its result, or `failed` with the message kept for lattice_error.
template <class Result, class Body> Result guarded(Result failed, Body&& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    fail(error.what());
    return failed;
  }
}

const Kernel*& registry() {
  static const Kernel* first = nullptr;   // a function's static: ready before any file's registrations
  return first;
}

const Kernel* kernel_number(int32_t number) {
  const Kernel* kernel = registry();
  for (; kernel && number > 0; --number) kernel = kernel->next;
  return number < 0 ? nullptr : kernel;
}

using Counters = std::array<std::atomic<int64_t>, max_phases>;

struct Plan {
  Pool& pool;
  std::vector<Tensor> tensors;
  std::vector<int32_t> parameters;
  std::vector<Record> records;
  std::vector<const Kernel*> kernels;
  std::vector<Counters> counters;
  std::array<int64_t, 3> capacity{INT32_MAX, INT32_MAX, INT32_MAX};   // of T, R, S
  uint8_t* scratch = nullptr;
  int64_t scratch_bytes = 0;

  Plan(Pool& owner, const Record* source, int32_t count);
  ~Plan() { platform::release(scratch, scratch_bytes); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void replay(int thread, const int32_t* counts, double* seconds);
  void clear_counters() {
    for (Counters& record : counters)
      for (auto& counter : record) counter.store(0, std::memory_order_relaxed);
  }
};

[[noreturn]] void bad_record(int32_t index, const char* what) {
  throw std::runtime_error("[cpu.plan] record " + std::to_string(index) + ": " + what);
}

void check(const Record& record, int32_t index) {
  if (!kernel_number(record.kernel)) bad_record(index, "no kernel of this number");
  if (record.tensors < 1 || record.tensors > 64 || !record.tensor) bad_record(index, "expected 1 to 64 tensors");
  if (record.parameters < 0 || record.parameters > 64 || (record.parameters && !record.parameter))
    bad_record(index, "expected at most 64 parameters");
  for (int i = 0; i < record.tensors; ++i) {
    const Tensor& t = record.tensor[i];
    if (t.ndim < 0 || t.ndim > 4) bad_record(index, "expected tensors of at most 4 dimensions");
    if (int32_t(t.count) < -1 || int32_t(t.count) > 2) bad_record(index, "unknown count");
    for (int d = 0; d < t.ndim; ++d)
      if (t.shape[d] < 0) bad_record(index, "negative dimension");
  }
}

Plan::Plan(Pool& owner, const Record* source, int32_t count) : pool(owner), counters(size_t(count)) {
  size_t all_tensors = 0, all_parameters = 0;
  for (int32_t i = 0; i < count; ++i) {
    check(source[i], i);
    all_tensors += size_t(source[i].tensors);
    all_parameters += size_t(source[i].parameters);
  }
  tensors.reserve(all_tensors);           // reserved: the records point into both vectors
  parameters.reserve(all_parameters);
  for (int32_t i = 0; i < count; ++i) {
    Record record = source[i];
    const Tensor* first = tensors.data() + tensors.size();
    const int32_t* parameter = parameters.data() + parameters.size();
    tensors.insert(tensors.end(), record.tensor, record.tensor + record.tensors);
    if (record.parameters) parameters.insert(parameters.end(), record.parameter, record.parameter + record.parameters);
    record.tensor = first;
    record.parameter = parameter;
    records.push_back(record);
    kernels.push_back(kernel_number(record.kernel));
    scratch_bytes = std::max(scratch_bytes, kernels.back()->scratch(record, pool.threads()));
    for (int t = 0; t < record.tensors; ++t) {
      const Tensor& tensor = record.tensor[t];
      if (tensor.count == Count::constant || tensor.ndim == 0 || !tensor.data) continue;
      int64_t& limit = capacity[size_t(tensor.count)];
      limit = std::min(limit, tensor.shape[0]);
    }
  }
  if (scratch_bytes > 0 && !(scratch = static_cast<uint8_t*>(platform::allocate(scratch_bytes)))) throw std::bad_alloc();
}

void Plan::replay(int thread, const int32_t* counts, double* seconds) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point start{};
  if (seconds) start = Clock::now();
  for (size_t i = 0; i < records.size(); ++i) {
    Call call{records[i], counts, pool, thread, pool.threads(), scratch, counters[i].data()};
    kernels[i]->body(call);
    pool.barrier(thread);
    if (seconds && thread == 0) {
      const auto now = Clock::now();
      seconds[i] += std::chrono::duration<double>(now - start).count();
      start = now;
    }
  }
}

int32_t run(Plan* const* plans, const int32_t* counts, int32_t number, double* seconds) {
  if (number <= 0) return 0;
  static const char* const names[] = {"T", "R", "S"};
  for (int32_t p = 0; p < number; ++p) {
    if (!plans[p]) return fail("[cpu.plan] expected a plan, got null");
    if (&plans[p]->pool != &plans[0]->pool) return fail("[cpu.plan] expected plans of one pool");
    if (std::find(plans, plans + p, plans[p]) != plans + p) return fail("[cpu.plan] expected each plan once in a run");
    for (size_t c = 0; c < 3; ++c)
      if (counts[3 * p + int(c)] < 0 || counts[3 * p + int(c)] > plans[p]->capacity[c])
        return fail(std::string("[cpu.plan] expected ") + names[c] + " up to " + std::to_string(plans[p]->capacity[c]) +
                    ", got " + std::to_string(counts[3 * p + int(c)]));
  }
  return guarded(int32_t(-1), [&] {
    Pool& pool = plans[0]->pool;
    pool.run([&](int thread) {
      for (int32_t p = 0; p < number; ++p) plans[p]->replay(thread, counts + 3 * p, seconds);
      if (thread == 0)
        for (int32_t p = 0; p < number; ++p) plans[p]->clear_counters();
    });
    return 0;
  });
}

// Seconds of one parallel pass over `words` of eight bytes.
double read_pass(Pool& pool, const uint64_t* words, int64_t count) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t chunk = int64_t(1) << 17;             // words: 1 MiB at a time
  std::atomic<int64_t> next{0}, total{0};
  const auto start = Clock::now();
  pool.run([&](int) {
    uint64_t sum[32] = {};                                // independent sums, so that loads are the only limit
    for (int64_t begin; (begin = next.fetch_add(chunk, std::memory_order_relaxed)) < count;) {
      const int64_t end = std::min(count, begin + chunk);
      for (int64_t i = begin; i + 32 <= end; i += 32)
        for (int64_t j = 0; j < 32; ++j) sum[j] += words[i + j];
    }
    uint64_t all = 0;
    for (uint64_t s : sum) all += s;
    total.fetch_add(int64_t(all & 0xff), std::memory_order_relaxed);   // the sums are used, so the reads happen
  });
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

void Call::barrier() {
  pool.barrier(thread);
  ++phase;
}

Registration::Registration(Kernel& kernel) {
  kernel.next = registry();
  registry() = &kernel;
}

}  // namespace lattice

using namespace lattice;

const char* lattice_error(void) { return last_error.c_str(); }
const char* lattice_target(void) { return LATTICE_TARGET; }

const char* lattice_runnable_targets(void) { return platform::runnable_targets(); }

void* lattice_alloc(int64_t bytes, int32_t huge) {
  void* memory = platform::allocate(bytes, huge != 0);
  if (!memory) fail("[cpu.alloc] expected memory for " + std::to_string(bytes) + " bytes, got none");
  return memory;
}

void lattice_free(void* memory, int64_t bytes) { platform::release(memory, bytes); }

void* lattice_pool_new(int32_t threads) {
  if (threads < 1 || threads > 1024) {
    fail("[cpu.pool] expected 1 to 1024 threads, got " + std::to_string(threads));
    return nullptr;
  }
  return guarded(static_cast<void*>(nullptr), [&]() -> void* { return new Pool(threads); });
}

void lattice_pool_free(void* pool) { delete static_cast<Pool*>(pool); }

int32_t lattice_kernel(const char* name) {
  int32_t number = 0;
  for (const Kernel* kernel = registry(); kernel; kernel = kernel->next, ++number)
    if (std::strcmp(kernel->name, name) == 0) return number;
  return fail(std::string("[cpu.kernel] expected the name of a kernel, got ") + name);
}

void* lattice_plan_new(void* pool, const Record* records, int32_t count) {
  if (!pool || count < 0 || (count && !records)) {
    fail("[cpu.plan] expected a pool and records");
    return nullptr;
  }
  return guarded(static_cast<void*>(nullptr),
                 [&]() -> void* { return new Plan(*static_cast<Pool*>(pool), records, count); });
}

void lattice_plan_free(void* plan) { delete static_cast<Plan*>(plan); }

int32_t lattice_plan_run(void* const* plans, const int32_t* counts, int32_t number) {
  return run(reinterpret_cast<Plan* const*>(plans), counts, number, nullptr);
}

int32_t lattice_plan_profile(void* plan, const int32_t* counts, double* seconds) {
  Plan* one = static_cast<Plan*>(plan);
  return run(&one, counts, 1, seconds);
}

double lattice_read_bandwidth(void* pool, int64_t bytes) {
  bytes = std::max<int64_t>(bytes, 1 << 20) / 256 * 256;
  uint64_t* words = static_cast<uint64_t*>(lattice_alloc(bytes, 1));
  if (!pool || !words) return -1;
  double best = -1;
  try {
    Pool& threads = *static_cast<Pool*>(pool);
    for (int64_t i = 0; i < bytes / 8; ++i) words[i] = uint64_t(i);   // touch: untouched pages all read one zero page
    std::array<double, 3> seconds;
    for (double& s : seconds) s = read_pass(threads, words, bytes / 8);
    std::sort(seconds.begin(), seconds.end());
    best = double(bytes) / seconds[1];
  } catch (const std::exception& error) {
    fail(error.what());
  }
  platform::release(words, bytes);
  return best;
}
