// Which kernels run: every set that was built, best first, and whether this processor can run it.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "weights.h"

namespace thinbert {

struct InstructionSet {
  const char* name;
  std::vector<std::string> needs;  // processor features, by their /proc/cpuinfo names
  const Kernels* kernels;          // null when it was not built for this kind of processor
  bool supported;                  // this processor has all it needs
};

// Best first; the last one, generic, runs everywhere.
std::vector<InstructionSet> instruction_sets();

// 10^9 byte products a second on registers alone, one thread: the ceiling of all products; 0 where it is not known.
double measure_ceiling(const Kernels& kernels);

// What one block of each form costs with these kernels here, timed now (at most 50 ms and one round).
Costs measure_costs(const Kernels& kernels);

}  // namespace thinbert
