#include "weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace thinbert {

Form plan(const Costs& costs, int rows, int columns, size_t blocks4x4, size_t blocks1x4) {
  const double dense = costs.dense * ((rows + 3) / 4) * ((columns + 3) / 4);
  const double four = costs.block4x4 * static_cast<double>(blocks4x4);
  const double one = costs.block1x4 * static_cast<double>(blocks1x4);
  if (dense <= four && dense <= one) return Form::kDense;
  return four <= one ? Form::kBlock4x4 : Form::kBlock1x4;
}

size_t count_blocks4x4(int rows, const BlockList& blocks) {
  size_t total = 0;
  std::vector<uint16_t> seen;
  for (int row = 0; row < rows; row += 4) {
    seen.assign(blocks.index + blocks.start[row], blocks.index + blocks.start[std::min(row + 4, rows)]);
    std::sort(seen.begin(), seen.end());
    total += static_cast<size_t>(std::unique(seen.begin(), seen.end()) - seen.begin());
  }
  return total;
}

namespace {

int32_t word_of(const int8_t* values) {
  int32_t word;
  std::memcpy(&word, values, 4);
  return word;
}

// One piece in the 1x4 form: every row's list, padded to whole quads with words of zero.
void fill_block1x4(Matrix::Piece& p, int rows, const BlockList& blocks, int first, int last) {
  std::vector<std::pair<long, int>> order;  // length of the list, row
  for (int row = 0; row < rows; ++row)
    order.emplace_back(std::count_if(blocks.index + blocks.start[row], blocks.index + blocks.start[row + 1],
                                     [&](int group) { return group >= first && group < last; }),
                       row);
  for (int top = 0; top < rows; top += kRowGroup)
    std::sort(order.begin() + top, order.begin() + std::min(rows, top + kRowGroup));
  p.start.push_back(0);
  for (const auto& [length, row] : order) {
    p.order.push_back(static_cast<uint8_t>(row % kRowGroup));
    int filled = 4;
    for (uint32_t b = blocks.start[row]; b < blocks.start[row + 1]; ++b) {
      if (blocks.index[b] < first || blocks.index[b] >= last) continue;
      if (filled == 4) {
        p.quads.push_back({});
        filled = 0;
      }
      p.quads.back().index[filled] = static_cast<uint16_t>(blocks.index[b] - first);
      p.quads.back().words[filled++] = word_of(blocks.values + size_t{4} * b);
    }
    p.start.push_back(static_cast<uint32_t>(p.quads.size()));
  }
}

// One piece in the dense form, in blocks of so many rows and groups.
void fill_dense(Matrix::Piece& p, int rows, const BlockList& blocks, int first, int last, int block_rows, int block_groups) {
  const size_t R = static_cast<size_t>(block_rows), G = static_cast<size_t>(block_groups), n = static_cast<size_t>(rows);
  const size_t across = (static_cast<size_t>(last - first) + G - 1) / G * G;
  p.words.assign((n + R - 1) / R * R * across, 0);
  for (size_t row = 0; row < n; ++row)
    for (uint32_t b = blocks.start[row]; b < blocks.start[row + 1]; ++b) {
      if (blocks.index[b] < first || blocks.index[b] >= last) continue;
      const size_t group = static_cast<size_t>(blocks.index[b] - first), r = row % R, g = group % G;
      p.words[(row - r) * across + (group - g) * R + r * G + g] = word_of(blocks.values + size_t{4} * b);
    }
}

// One piece as row blocks of 4, of each the groups that any of the four rows has.
void fill_block4x4(Matrix::Piece& p, int rows, const BlockList& blocks, int first, int last) {
  const int groups = last - first;
  std::vector<int32_t> block(static_cast<size_t>(groups) * 4);
  std::vector<bool> occupied(static_cast<size_t>(groups));
  p.start.push_back(0);
  for (int top = 0; top < rows; top += 4) {
    std::fill(block.begin(), block.end(), 0);
    std::fill(occupied.begin(), occupied.end(), false);
    for (int row = top; row < std::min(top + 4, rows); ++row)
      for (uint32_t b = blocks.start[row]; b < blocks.start[row + 1]; ++b) {
        if (blocks.index[b] < first || blocks.index[b] >= last) continue;
        const size_t group = static_cast<size_t>(blocks.index[b] - first);
        block[group * 4 + static_cast<size_t>(row - top)] = word_of(blocks.values + size_t{4} * b);
        occupied[group] = true;
      }
    for (size_t group = 0; group < static_cast<size_t>(groups); ++group) {
      if (!occupied[group]) continue;
      p.index.push_back(static_cast<uint16_t>(group));
      p.words.insert(p.words.end(), block.begin() + static_cast<long>(group * 4),
                     block.begin() + static_cast<long>(group * 4 + 4));
    }
    p.start.push_back(static_cast<uint32_t>(p.index.size()));
  }
}

}  // namespace

Matrix make_matrix(int rows, int columns, const BlockList& blocks, const float* scale, const float* bias, Form form,
                   const Kernels& kernels) {
  Matrix m;
  m.form = form;
  m.scale.assign(scale, scale + rows);
  m.bias.assign(bias, bias + rows);
  const Pieces cut = pieces(columns);
  for (int piece = 0; piece < cut.count; ++piece) {
    Matrix::Piece p;
    const int first = piece * cut.size, last = std::min(columns, first + cut.size);
    p.columns = last - first;
    const int first_group = first / 4, last_group = (last + 3) / 4;
    switch (form) {
      case Form::kDense:
        fill_dense(p, rows, blocks, first_group, last_group, kernels.dense_rows, kernels.dense_groups);
        break;
      case Form::kBlock4x4: fill_block4x4(p, rows, blocks, first_group, last_group); break;
      case Form::kBlock1x4: fill_block1x4(p, rows, blocks, first_group, last_group); break;
    }
    p.row_sum.assign(static_cast<size_t>(rows), 0);
    for (int row = 0; row < rows; ++row)
      for (uint32_t b = blocks.start[row]; b < blocks.start[row + 1]; ++b)
        if (blocks.index[b] >= first_group && blocks.index[b] < last_group)
          for (int j = 0; j < 4; ++j) p.row_sum[static_cast<size_t>(row)] += blocks.values[size_t{4} * b + static_cast<size_t>(j)];
    p.quads.shrink_to_fit();
    p.index.shrink_to_fit();
    p.words.shrink_to_fit();
    m.parts.push_back(std::move(p));
  }
  return m;
}

}  // namespace thinbert
