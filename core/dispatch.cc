#include "dispatch.h"

#include <algorithm>
#include <chrono>

#include "cpu.h"

namespace thinbert {

std::vector<InstructionSet> instruction_sets() {
  const Kernels* amx = nullptr;
  const Kernels* avx512 = nullptr;
  const Kernels* avxvnni = nullptr;
  const Kernels* avx2 = nullptr;
#if defined(THINBERT_X86)
  avx512 = avx512vnni_kernels();
  avx2 = avx2_kernels();
#endif
#if defined(THINBERT_AMX)
  amx = amx_kernels();
#endif
#if defined(THINBERT_AVXVNNI)
  avxvnni = avxvnni_kernels();
#endif
  // `needs` repeats the compiler flags of the kernel's file in CMakeLists.txt, no fewer
  std::vector<InstructionSet> sets = {
      {"amx", {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "amx_tile", "amx_int8"}, amx, false},
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
  constexpr int rounds = 10'240;  // a multiple of what a round on tiles does at once
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
  // 256 rows x 768 columns, about a fifth of the blocks kept, and so much sixteen times: 3 MB of dense weights, which come from
  // beyond the L2 cache as they do in a model. Each form does its own share of it.
  constexpr int rows = 256, groups = 192, kept = 40, vectors = kMaxVectors, times = 16;
  std::vector<uint8_t> memory(static_cast<size_t>(groups) * vectors * 64 + 64, 3);
  uint8_t* x = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  Words words(static_cast<size_t>(times) * rows * groups, 0x01020304);
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
  const size_t quads_once = quads.size();
  for (size_t n = quads_once; n < times * quads_once; ++n) quads.push_back(quads[n - quads_once]);
  const std::vector<int32_t> sums(rows, 0), zeros(vectors * 16, 0);
  const std::vector<float> ones(rows + vectors * 16, 1.0f);
  std::vector<float> out(static_cast<size_t>(rows) * vectors * 16);
  const Rows all = {rows, sums.data(), ones.data(), ones.data(), ones.data(), zeros.data(), true, out.data()};
  std::vector<double> dense, four, one;  // ns of each round
  double total = 0;
  const auto time = [&](std::vector<double>& rounds, auto run) {
    const auto begin = std::chrono::steady_clock::now();
    for (size_t n = 0; n < times; ++n) run(n);
    rounds.push_back(std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count());
    total += rounds.back();
  };
  // In turns, and not the best of them: how fast a core is changes from moment to moment, for tiles most, and what counts is how
  // forms compare as a rule.
  while (dense.size() < 10 && total < 5e7) {
    time(dense, [&](size_t n) { kernels.dense(words.data() + n * rows * groups, groups, x, vectors, all); });
    time(four, [&](size_t n) {
      kernels.block4x4(start4x4.data(), index.data(), words.data() + n * rows * kept, x, vectors, all);
    });
    time(one, [&](size_t n) {
      kernels.block1x4(start1x4.data(), order.data(), quads.data() + n * quads_once, x, vectors, all);
    });
  }
  const auto median = [](std::vector<double>& of) {
    std::nth_element(of.begin(), of.begin() + static_cast<long>(of.size() / 2), of.end());
    return of[of.size() / 2];
  };
  constexpr double once = double{rows} * times * vectors;
  return {median(dense) / (once / 4 * groups), median(four) / (once / 4 * kept), median(one) / (once * kept)};
}

}  // namespace thinbert
