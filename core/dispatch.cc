#include "dispatch.h"

#include <algorithm>
#include <chrono>

#include "cpu.h"

namespace thinbert {

std::vector<InstructionSet> instruction_sets() {
  const Kernels* avx512 = nullptr;
  const Kernels* avxvnni = nullptr;
  const Kernels* avx2 = nullptr;
#if defined(THINBERT_X86)
  avx512 = avx512vnni_kernels();
  avx2 = avx2_kernels();
#endif
#if defined(THINBERT_AVXVNNI)
  avxvnni = avxvnni_kernels();
#endif
  // `needs` repeats the compiler flags of the kernel's file in CMakeLists.txt, no fewer
  std::vector<InstructionSet> sets = {
      {"avx512vnni", {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}, avx512, false},
      {"avxvnni", {"avx2", "fma", "avx_vnni"}, avxvnni, false},
      {"avx2", {"avx2", "fma"}, avx2, false},
      {"generic", {}, generic_kernels(), false},
  };
  const std::vector<CpuFeature> features = cpu_features();
  for (InstructionSet& set : sets)
    set.supported = std::all_of(set.needs.begin(), set.needs.end(), [&](const std::string& need) {
      return std::any_of(features.begin(), features.end(),
                         [&](const CpuFeature& f) { return f.present && need == f.name; });
    });
  return sets;
}

double measure_ceiling(const Kernels& kernels) {
  if (!kernels.spin) return 0;
  constexpr int rounds = 10'000;
  double best = 1e30;
  volatile int32_t kept = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const auto begin = std::chrono::steady_clock::now();
    kept = kept + kernels.spin(rounds);
    best = std::min(best, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count());
  }
  return rounds * 16.0 * 64 / best;
}

Costs measure_costs(const Kernels& kernels) {
  // A piece of 256 rows x 768 columns, about a fifth of its blocks kept; each form does its own share of it.
  constexpr int rows = 256, groups = 192, kept = 40, vectors = kMaxVectors;
  std::vector<uint8_t> memory(static_cast<size_t>(groups) * vectors * 64 + 64, 3);
  uint8_t* x = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  std::vector<int32_t> words(static_cast<size_t>(rows) * groups, 0x01020304);
  std::vector<uint32_t> start4x4, start1x4;
  std::vector<uint16_t> index;
  std::vector<Quad> quads;
  std::vector<uint8_t> order(rows);
  for (int row = 0; row < rows; ++row) order[static_cast<size_t>(row)] = static_cast<uint8_t>(row % kRowGroup);
  for (int row = 0; row <= rows; ++row) {
    start4x4.push_back(static_cast<uint32_t>(row * kept));
    start1x4.push_back(static_cast<uint32_t>(row * kept / 4));
    for (int b = 0; b < kept && row < rows; ++b) {
      index.push_back(static_cast<uint16_t>((b * groups / kept + row * 7) % groups));
      if (b % 4 == 0) quads.push_back({{}, {1, 2, 3, 4}});
      quads.back().index[b % 4] = index.back();
    }
  }
  const std::vector<int32_t> sums(rows, 0), zeros(vectors * 16, 0);
  const std::vector<float> ones(rows + vectors * 16, 1.0f);
  std::vector<float> out(static_cast<size_t>(rows) * vectors * 16);
  const Rows all = {rows, sums.data(), ones.data(), ones.data(), ones.data(), zeros.data(), true, out.data()};
  const auto best_of = [](auto run) {
    double best = 1e30;
    for (int round = 0; round < 5; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      run();
      best = std::min(best, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  const double one = best_of([&] { kernels.block1x4(start1x4.data(), order.data(), quads.data(), x, vectors, all); });
  const double four = best_of([&] { kernels.block4x4(start4x4.data(), index.data(), words.data(), x, vectors, all); });
  const double dense = best_of([&] { kernels.dense(words.data(), groups, x, vectors, all); });
  return {dense / (rows / 4 * groups * vectors), four / (rows / 4 * kept * vectors), one / (rows * kept * vectors)};
}

}  // namespace thinbert
