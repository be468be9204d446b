// The inner kernels of linear and project: a few panels of weights times a few tokens, in registers.
//
// out[t][r] = sum over k of w[r][k] * x[t][k] for the 16 * panels rows of a group. Every sum runs over k in order, block
// by block for block formats, in a chain of its own: its bits depend on nothing but its row and its token, so one token
// alone and a prompt of thousands give the same, whatever shape of group computed it.
#pragma once
#include <cstdint>

#include "abi.h"

namespace lattice {

// The form in which the activations of a weight's products are read.
//   floats   as they are;  records  quantise.h;  row8, row16  rows.h
enum class Form { floats, records, row8, row16 };

Form form_of(DType weights);
int64_t form_bytes(Form form, int64_t k);            // bytes of one token in that form, rows being contiguous

int most_tokens(DType weights);                      // tokens that one call takes at most
int most_panels(DType weights, int tokens);          // panels that one call takes best at that many tokens
constexpr int group_values = 768;                    // no call makes more: panels * 16 * tokens
constexpr int group_tokens = 12;                     // a multiple of every most_tokens

struct Product {
  const uint8_t* panel;                              // the first panel; the others follow it
  const uint8_t* x;                                  // the first token
  int64_t x_stride;                                  // bytes between tokens
  int64_t k;
  float* out;                                        // [tokens][16 * panels]
  int64_t out_stride;                                // floats between tokens
};
void multiply(DType weights, int panels, int tokens, const Product& product);   // panels: 1 or most_panels

}  // namespace lattice
