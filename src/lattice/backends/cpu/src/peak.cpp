// The roof of integer products: how many of bytes a second all threads reach where nothing comes from memory, is
// unpacked or scaled. Sums are those of dot.h for weights of four bits, the cheapest of a target; operands stay in L1.
#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "abi.h"
#include "dot.h"
#include "pool.h"

namespace lattice {
namespace {

constexpr int V = 2, T = lanes == 16 ? 6 : 4;            // sums that fit into registers and hide each other's latency
constexpr int panels = 4, rounds = registers ? 1 << 20 : 1 << 14;
constexpr double products = double(rounds) * V * T * record_values * lanes;   // of one thread

void multiply_all() {
  const std::vector<uint8_t> w(panels * V * 8 * vector_bytes, 3);
  const std::vector<Quantised> x(T, Quantised{{5, -7, 9}, 0, 0, 0, 0, {}});
  vf sum = zero();
  for (int r = 0; r < rounds; r++) {
    const uint8_t* panel = w.data() + r % panels * (V * 8 * vector_bytes);
    Sum<4> s[V][T];
    repeat<8>([&](auto i) __attribute__((always_inline)) {
      LATTICE_UNROLL
      for (int t = 0; t < T; t++)
        LATTICE_UNROLL
        for (int v = 0; v < V; v++) {
          if (i == 0) s[v][t].start(whole(0));
          s[v][t].template add<i>(load_bytes(panel + (8 * v + i) * vector_bytes), four<i>(values(x[t].q)));
        }
    });
    LATTICE_UNROLL
    for (int t = 0; t < T; t++)
      LATTICE_UNROLL
      for (int v = 0; v < V; v++) sum = sum + s[v][t].total(whole(0));
  }
  [[maybe_unused]] volatile float used = reduce_add(sum);
}

}  // namespace
}  // namespace lattice

double lattice_integer_peak(void* pool) {
  using Clock = std::chrono::steady_clock;
  lattice::Pool& threads = *static_cast<lattice::Pool*>(pool);
  std::array<double, 3> seconds;
  for (double& one : seconds) {
    const auto start = Clock::now();
    threads.run([&](int) { lattice::multiply_all(); });
    one = std::chrono::duration<double>(Clock::now() - start).count();
  }
  std::sort(seconds.begin(), seconds.end());
  return threads.threads() * lattice::products / seconds[1];
}
