// embedding(table, ids) -> rows of the table as float32, whatever the table's dtype and layout.
#include <algorithm>

#include "kernel.h"
#include "tiles.h"

namespace lattice {

KERNEL(embedding, no_scratch) {
  const Tensor& table = call.tensor(0);
  const int32_t* ids = call.data<int32_t>(1);
  float* y = call.data<float>(2);
  const int64_t n = call.width(2);
  call.tiles(call.rows(1), std::max<int64_t>(1, 8192 / std::max<int64_t>(1, n)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) read_row(table, ids[i], y + i * n);
  });
}

}  // namespace lattice
