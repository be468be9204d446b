// Everything the native core asks of the operating system: what the processor has, pause and yield, aligned memory with
// huge pages, fork hooks.
// No other file includes an OS header, so a port to a new system is a port of this file.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#if !defined(NOMINMAX)   // MinGW's standard library defines it
#define NOMINMAX
#endif
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lattice::platform {

// The targets that this processor runs, the portable one first and the fastest last: it has everything that a target's
// flags in CMakeLists.txt name, and the system saves the registers.
inline const char* runnable_targets() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c, d;                    // F16C and AVX-VNNI by hand: Clang 14 does not know their names
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
  const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  return avx512 ? (vnni ? "scalar avx2 avxvnni avx512" : "scalar avx2 avx512")
       : vnni   ? "scalar avx2 avxvnni" : avx2 ? "scalar avx2" : "scalar";
#elif defined(__aarch64__) && defined(__linux__)
  // Armv8.2 as compilers use it (crc32, atomics, asimdrdm), and dot products (asimddp): HWCAP bits of the kernel's ABI.
  constexpr unsigned long needed = 1ul << 7 | 1ul << 8 | 1ul << 12 | 1ul << 20;
  return (getauxval(AT_HWCAP) & needed) == needed ? "scalar neon" : "scalar";
#elif defined(__aarch64__) && defined(__APPLE__)
  return "scalar neon";                          // every Mac with this processor family has all of it
#elif defined(__aarch64__) && defined(_WIN32)
  constexpr DWORD dot_products = 43;      // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which older headers lack
  return IsProcessorFeaturePresent(dot_products) ? "scalar neon" : "scalar";
#else
  return "scalar";
#endif
}

// Tell the core that this is a spin loop: some 40 cycles of low power, and a sibling hyperthread gets the units.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");   // "yield" is a no-op on most ARM cores; isb really waits
#endif
}

inline void yield() {
#if defined(_WIN32)
  SwitchToThread();
#else
  sched_yield();
#endif
}

// The core this thread runs on, and a request to run on another one: schedulers like to wake a thread on the core of the
// one that woke it, where two threads that wait for each other take turns of milliseconds. No thread stays bound.
#if defined(__linux__)
inline int current_core() { return sched_getcpu(); }
inline void leave_core(int core) {
  cpu_set_t all, others;
  if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof all, &all) != 0) return;
  others = all;
  CPU_CLR(size_t(core), &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof others, &others);
  sched_setaffinity(0, sizeof all, &all);
}
#else
inline int current_core() { return -1; }
inline void leave_core(int) {}
#endif

constexpr int64_t huge_page = int64_t(2) << 20;
constexpr int64_t own_pages = int64_t(64) << 10;   // from here on a buffer has pages of its own, none before its first use
constexpr int64_t line = 64;           // bytes of a cache line, and the alignment of every buffer

// Zeroed memory aligned to 64 bytes, from 2 MiB on to 2 MiB; `huge` asks for huge pages there. nullptr: none left.
// Huge pages are for what is read as a whole: of a sparsely used pool the first touch would zero 2 MiB at each place.
inline void* allocate(int64_t bytes, bool huge = true) {
  if (bytes < 0) return nullptr;
#if defined(_WIN32)
  (void)huge;
  if (bytes >= own_pages) return VirtualAlloc(nullptr, size_t(bytes), MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  size_t size = size_t((bytes + line) / line * line);
  void* memory = _aligned_malloc(size, line);
#else
  if (bytes >= own_pages) {
    // Reserve one unit more than needed and cut off what lies before and after the aligned part.
    int64_t unit = bytes >= huge_page ? huge_page : own_pages;
    size_t size = size_t((bytes + unit - 1) / unit * unit), whole = size + size_t(unit);
    void* reserved = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED) return nullptr;
    uintptr_t base = reinterpret_cast<uintptr_t>(reserved);
    uintptr_t aligned = (base + uintptr_t(unit) - 1) / uintptr_t(unit) * uintptr_t(unit);
    if (aligned > base) munmap(reserved, aligned - base);
    uintptr_t end = base + whole, aligned_end = aligned + size;
    if (end > aligned_end) munmap(reinterpret_cast<void*>(aligned_end), end - aligned_end);
#if defined(MADV_HUGEPAGE)
    madvise(reinterpret_cast<void*>(aligned), size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);   // a wish: only speed
#endif
    return reinterpret_cast<void*>(aligned);
  }
  size_t size = size_t((bytes + line) / line * line);
  void* memory = std::aligned_alloc(size_t(line), size);
#endif
  if (memory) std::memset(memory, 0, size);
  return memory;
}

// `bytes` is what was asked of allocate: it tells which of the two ways was taken.
inline void release(void* memory, int64_t bytes) {
  if (!memory) return;
#if defined(_WIN32)
  if (bytes >= own_pages) VirtualFree(memory, 0, MEM_RELEASE);
  else _aligned_free(memory);
#else
  int64_t unit = bytes >= huge_page ? huge_page : own_pages;
  if (bytes >= own_pages) munmap(memory, size_t((bytes + unit - 1) / unit * unit));
  else std::free(memory);
#endif
}

// Call `before` ahead of every fork, then `parent` or `child` after it on the respective side.
inline void on_fork(void (*before)(), void (*parent)(), void (*child)()) {
#if !defined(_WIN32)
  pthread_atfork(before, parent, child);
#else
  (void)before, (void)parent, (void)child;
#endif
}

}  // namespace lattice::platform
