// The Python module thinbert._core: shapes, the GIL and errors; nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "cpu.h"

namespace nb = nanobind;

NB_MODULE(_core, m) {
  m.doc() = "thinbert's native core.";
  m.def(
      "cpu_features",
      [] {
        std::vector<std::string> names;
        for (const auto& feature : thinbert::cpu_features())
          if (feature.present) names.emplace_back(feature.name);
        return names;
      },
      "Instruction-set extensions usable on this machine, by their /proc/cpuinfo names.");
}
