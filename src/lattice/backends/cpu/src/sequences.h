// Which sequence a token belongs to, for kernels that read a Step.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernel.h"

namespace lattice {

// The Step fields of a record, which begin at tensor `first`.
struct StepView {
  const int32_t *positions, *offsets, *page_table, *slots, *saves;
  int64_t sequences, pages;   // pages: entries of one sequence in the page table

  StepView(const Call& call, int first)
      : positions(call.data<int32_t>(first + StepField::positions)),
        offsets(call.data<int32_t>(first + StepField::offsets)),
        page_table(call.data<int32_t>(first + StepField::page_table)),
        slots(call.data<int32_t>(first + StepField::slots)),
        saves(call.data<int32_t>(first + StepField::saves)),
        sequences(call.counts[int(Count::S)]),
        pages(call.width(first + StepField::page_table)) {}

  int64_t sequence_of(int64_t token) const {
    return std::upper_bound(offsets, offsets + sequences + 1, int32_t(token)) - offsets - 1;
  }
  int64_t length(int64_t sequence) const { return offsets[sequence + 1] - offsets[sequence]; }
};

}  // namespace lattice
