// unpadded_positions(step, padding): each token's position counts the tokens before it that are not padding, from
// padding + 1 on; a padding token's is `padding`. Never negative and at most position + padding + 1.
#include <algorithm>

#include "kernel.h"
#include "sequences.h"

namespace lattice {

KERNEL(unpadded_positions, no_scratch) {
  const int32_t* tokens = call.data<int32_t>(StepField::tokens);
  const StepView step(call, 0);
  int32_t* y = call.data<int32_t>(StepField::step_fields);
  const int32_t padding = call.integer(0);
  call.tiles(step.sequences, 8, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      int32_t skipped = 0;
      for (int64_t t = step.offsets[s]; t < step.offsets[s + 1]; ++t) {
        const bool is_padding = tokens[t] == padding;
        y[t] = padding + (is_padding ? 0 : std::max(0, step.positions[t] - skipped + 1));
        skipped += is_padding;
      }
    }
  });
}

}  // namespace lattice
