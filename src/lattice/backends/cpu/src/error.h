// The one place where a failure's message goes: lattice_error() hands it to Python.
#pragma once
#include <cstdint>
#include <string>

namespace lattice {

int32_t fail(const std::string& message);   // keeps the message for this thread; returns -1

}  // namespace lattice
