// Threads of the pool: start, wait, park, stop, and survive a fork.
//
// Fork: a child has the memory of its parent but none of its workers. The fork waits until no run is under way; the
// child then forgets the dead workers and starts its own at its first run. A child that only execs pays nothing.
#include "pool.h"

#include <chrono>
#include <new>

namespace lattice {

struct ForkGuard {
  static inline std::mutex mutex;         // guards the list
  static inline Pool* pools = nullptr;

  static void before() {
    mutex.lock();
    for (Pool* p = pools; p; p = p->next_) p->mutex_.lock();
  }
  static void parent() {
    for (Pool* p = pools; p; p = p->next_) p->mutex_.unlock();
    mutex.unlock();
  }
  static void child() {
    for (Pool* p = pools; p; p = p->next_) {
      // The handles name threads of the parent: neither join nor detach is possible, so the vector is abandoned.
      new (&p->workers_) std::vector<std::thread>();
      p->mutex_.unlock();
    }
    mutex.unlock();
  }
  static void add(Pool* pool) {
    static const bool once = (platform::on_fork(before, parent, child), true);
    (void)once;
    std::lock_guard lock(mutex);
    pool->next_ = pools;
    pools = pool;
  }
  static void remove(Pool* pool) {
    std::lock_guard lock(mutex);
    for (Pool** p = &pools; *p; p = &(*p)->next_)
      if (*p == pool) { *p = pool->next_; return; }
  }
};

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads), lines_(size_t(threads_)) {
  start();
  ForkGuard::add(this);
}

Pool::~Pool() {
  ForkGuard::remove(this);
  stop_ = true;
  ticket_.value.fetch_add(1);
  ticket_.value.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::start() {
  // Arrivals may differ between threads after a fork or a failed start; level them while nobody waits.
  for (Arrival& line : lines_) line.arrived.store(0, std::memory_order_relaxed);
  released_.value.store(0, std::memory_order_relaxed);
  const uint32_t seen = ticket_.value.load();
  workers_.reserve(size_t(threads_ - 1));
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back(&Pool::work, this, i, seen);
  } catch (...) {
    stop_ = true;
    ticket_.value.fetch_add(1);
    ticket_.value.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
    throw;
  }
}

uint32_t Pool::next_ticket(uint32_t seen, bool& parked) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < most_spins; ++i) {
    uint32_t ticket = ticket_.value.load(std::memory_order_acquire);
    if (ticket != seen) return ticket;
    platform::pause();
  }
  const auto limit = Clock::now() + std::chrono::microseconds(park_microseconds);
  while (Clock::now() < limit) {
    uint32_t ticket = ticket_.value.load(std::memory_order_acquire);
    if (ticket != seen) return ticket;
    platform::yield();
  }
  parked = true;
  ticket_.value.wait(seen, std::memory_order_acquire);
  return ticket_.value.load(std::memory_order_acquire);
}

void Pool::work(int thread, uint32_t seen) {
  for (bool parked = true;; parked = false) {   // a new thread is like one just woken
    seen = next_ticket(seen, parked);
    if (stop_) return;
    if (parked && platform::current_core() == core_) platform::leave_core(core_);
    job_(context_, thread);
    barrier(thread);
  }
}

void Pool::run_job(Job job, void* context) {
  std::lock_guard lock(mutex_);
  if (threads_ > 1) {
    if (workers_.empty()) start();
    job_ = job;
    context_ = context;
    core_ = platform::current_core();
    ticket_.value.fetch_add(1);           // sequentially consistent: a worker either sees it or is seen waiting
    ticket_.value.notify_all();           // no system call when nobody is parked
  }
  job(context, 0);
  barrier(0);
}

}  // namespace lattice
