// The persistent pool of threads: run one body on every thread, with barriers inside it.
//
// The caller of run() is thread 0; threads - 1 workers are the others. A worker that waits spins for some 2000 pauses
// (a decode step follows the last one within microseconds), then yields (pure spinning collapses 40-fold when another
// process wants the core), and after 2 ms without work parks in the kernel, where it costs nothing. Threads are not
// pinned: the scheduler knows more about the machine than we do.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "platform.h"

namespace lattice {

class Pool {
 public:
  explicit Pool(int threads);   // throws std::system_error when the system gives no thread
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // body(thread) once on every thread; returns when all have returned. Several Python threads may call: they queue.
  template <class Body> void run(Body&& body) {
    run_job([](void* context, int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
            const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Inside run: returns when every thread has come here. What was written before it is visible after it.
  void barrier(int thread) {
    if (threads_ == 1) return;
    const uint32_t epoch = lines_[thread].arrived.load(std::memory_order_relaxed) + 1;
    lines_[thread].arrived.store(epoch, std::memory_order_release);
    if (thread == 0 || threads_ <= all_to_all) {
      for (int other = 0; other < threads_; ++other)
        if (other != thread) wait_for(lines_[other].arrived, epoch, lines_[thread].spins);
      if (threads_ > all_to_all) released_.value.store(epoch, std::memory_order_release);
    } else {
      wait_for(released_.value, epoch, lines_[thread].spins);
    }
  }

 private:
  using Job = void (*)(void* context, int thread);
  // One cache line a thread: nobody's arrival disturbs the line that another one is writing.
  struct alignas(platform::line) Arrival {
    std::atomic<uint32_t> arrived{0};
    int spins = most_spins;               // the thread's own: few after a wait that had to yield, all after one that did not
  };
  struct alignas(platform::line) Word { std::atomic<uint32_t> value{0}; };

  static constexpr int all_to_all = 8;    // up to here each thread watches all others: one hop; beyond, thread 0 gathers
  static constexpr int most_spins = 2000, few_spins = 50;
  static constexpr int park_microseconds = 2000;

  void wait_for(const std::atomic<uint32_t>& word, uint32_t epoch, int& spins) {
    for (int i = 0; int32_t(word.load(std::memory_order_acquire) - epoch) < 0; ++i) {
      if (i < spins) {
        platform::pause();
        continue;
      }
      // Who had to yield shares its core: next time it yields sooner, so that turns are short.
      do platform::yield();
      while (int32_t(word.load(std::memory_order_acquire) - epoch) < 0);
      spins = few_spins;
      return;
    }
    spins = most_spins;
  }

  void run_job(Job job, void* context);
  void start();                           // workers that are not there: at first, and in a forked child
  void work(int thread, uint32_t seen);
  uint32_t next_ticket(uint32_t seen, bool& parked);

  const int threads_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  int core_ = -1;                         // where the caller runs
  bool stop_ = false;
  Word ticket_;                           // counts jobs; workers wait for it to change
  Word released_;
  std::vector<Arrival> lines_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;                      // held through a run; taken by fork so that a child never sees half a run

  Pool* next_ = nullptr;                  // list of living pools, for fork
  friend struct ForkGuard;
};

}  // namespace lattice
