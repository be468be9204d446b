// The GPU backend's inner loop: the commands of a step, through wgpu-native's functions, whose addresses Python knows.
#include "abi.h"

LATTICE_API void lattice_replay(void* pass, const lattice::PassFunctions* functions, const lattice::Command* commands,
                                int32_t count) {
  const void* last = nullptr;
  for (const lattice::Command* command = commands; command != commands + count; ++command) {
    if (command->pipeline != last) functions->set_pipeline(pass, command->pipeline);
    last = command->pipeline;
    functions->set_group(pass, 0, command->group, 0, nullptr);
    functions->dispatch(pass, command->x, command->y, command->z);
  }
}
