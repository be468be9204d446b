// What a card's step gives: the host waits for the step's own submission, not for those behind it.
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "abi.h"

namespace {

using Answer = std::atomic<uint32_t>;
using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds patience{5};

void told(uint32_t status, lattice::Text, void* answer, void*) { static_cast<Answer*>(answer)->store(status); }

// Waits for an answer that another thread, which polled the device meanwhile, may have taken and be about to give.
uint32_t given(const Answer& answer) {
  const Clock::time_point latest = Clock::now() + patience;
  while (answer.load() == 0 && Clock::now() < latest) std::this_thread::yield();
  return answer.load();
}

}  // namespace

LATTICE_API int32_t lattice_read_mapped(const lattice::ReadFunctions* functions, void* device, void* buffer,
                                        uint64_t size, uint64_t submission, void* out) {
  Answer* const answer = new (std::nothrow) Answer(0);
  if (answer == nullptr) return 0;
  const lattice::MapCallback callback{nullptr, uint32_t(functions->process_events), told, answer, nullptr};
  functions->map(buffer, functions->read, 0, size, callback);
  if (answer->load() == 0) functions->poll(device, 1, &submission);
  const uint32_t status = given(*answer);
  if (status == 0) return 0;  // what may still be written to is never freed
  delete answer;
  if (status != functions->success) return 0;
  const void* const mapped = functions->mapped(buffer, 0, size);
  if (mapped != nullptr) std::memcpy(out, mapped, size);
  functions->unmap(buffer);
  return mapped != nullptr;
}
