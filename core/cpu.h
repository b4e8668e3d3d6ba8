// Which instruction-set extensions this processor and operating system offer.
#pragma once

#include <vector>

namespace thinbert {

struct CpuFeature {
  const char* name;  // the spelling /proc/cpuinfo uses
  bool present;      // the processor has it and the system saves its registers
};

std::vector<CpuFeature> cpu_features();

}  // namespace thinbert
