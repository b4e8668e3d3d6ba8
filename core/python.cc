// The Python module thinbert._core: shapes, the GIL and errors; nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu.h"
#include "dispatch.h"
#include "encoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace thinbert;

template <typename T, int N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

const InstructionSet& find_set(const std::string& name) {
  static const std::vector<InstructionSet> sets = instruction_sets();
  for (const InstructionSet& set : sets)
    if (name == set.name) {
      if (!set.kernels) throw nb::value_error("not built in");
      if (!set.supported) throw nb::value_error("not on this CPU");
      return set;
    }
  throw nb::value_error("unknown instruction set");
}

constexpr int kMostHeads = 1 << 16;

void require(bool ok, const char* message) {
  if (!ok) throw nb::value_error(message);
}

std::vector<float> floats(const Array<float, 1>& a) { return {a.data(), a.data() + a.shape(0)}; }

// An int8 matrix [N, K] as a row-wise list of its occupied 1x4 blocks, scales and bias.
struct PyMatrix {
  int rows, columns;
  Array<uint32_t, 1> start;
  Array<uint16_t, 1> index;
  Array<int8_t, 2> values;
  Array<float, 1> scale, bias;

  PyMatrix(int rows, int columns, Array<uint32_t, 1> start, Array<uint16_t, 1> index, Array<int8_t, 2> values,
           Array<float, 1> scale, Array<float, 1> bias)
      : rows(rows), columns(columns), start(start), index(index), values(values), scale(scale), bias(bias) {}

  // When it is used: the arrays are the caller's, who may have written to them.
  void check() const {
    const size_t n = static_cast<size_t>(rows);
    require(rows >= 0 && columns >= 0, "negative shape");
    require(start.shape(0) == n + 1 && scale.shape(0) == n && bias.shape(0) == n, "start, scale or bias of another length");
    require(values.shape(0) == index.shape(0) && values.shape(1) == 4, "values are not [blocks, 4]");
    require(start.data()[0] == 0 && start.data()[n] == index.shape(0), "start does not span the blocks");
    const int groups = (columns + 3) / 4;
    for (size_t row = 0; row < n; ++row) {
      require(start.data()[row] <= start.data()[row + 1], "start falls");
      require(start.data()[row + 1] <= index.shape(0), "start past the blocks");
      for (uint32_t b = start.data()[row]; b < start.data()[row + 1]; ++b) {
        require(index.data()[b] < groups, "index past the columns");
        require(b == start.data()[row] || index.data()[b - 1] < index.data()[b], "index does not rise");
      }
    }
  }
  BlockList list() const { return {start.data(), index.data(), values.data()}; }
};

class PyEncoder {
 public:
  PyEncoder(const std::string& isa, int threads, int width, int head_size, int activation, float eps,
            std::vector<double> costs)
      : set_(find_set(isa)), pool_(threads), costs_{costs.at(0), costs.at(1), costs.at(2)} {
    require(threads > 0 && width > 0 && width % 16 == 0, "threads or width");
    require(head_size == 32 || head_size == 64, "head size is neither 32 nor 64");
    require(activation >= 0 && activation <= 2, "unknown activation");
    e_.kernels = set_.kernels;
    e_.width = width;
    e_.head_size = head_size;
    e_.activation = static_cast<Activation>(activation);
    e_.eps = eps;
  }

  void set_embeddings(nb::list tables, Array<float, 1> weight, Array<float, 1> bias) {
    Table read[3] = {};
    std::vector<Array<int8_t, 2>> values(3);
    std::vector<Array<float, 1>> scales(3);
    require(nb::len(tables) == 2 || nb::len(tables) == 3, "expected two or three tables");
    for (size_t i = 0; i < nb::len(tables); ++i) {
      const nb::tuple pair = nb::cast<nb::tuple>(tables[i]);
      // a copy of another type would not be there when it is read
      if (pair.size() != 2 || !nb::try_cast(pair[0], values[i], false) || !nb::try_cast(pair[1], scales[i], false))
        throw nb::type_error("a table is int8 [rows, width] and float32 [rows], both contiguous");
      require(values[i].shape(1) == static_cast<size_t>(e_.width) && scales[i].shape(0) == values[i].shape(0), "table shape");
      read[i] = {values[i].data(), scales[i].data(), static_cast<int>(values[i].shape(0))};
    }
    e_.embedding_norm = norm(weight, bias);
    e_.token = read[0], e_.position = read[1], e_.token_type = read[2];
    values_ = std::move(values), scales_ = std::move(scales);  // the tables are read in place
  }

  // Returns the form each matrix was given, in the order of the arguments.
  std::vector<int> add_layer(int heads, int ffn, std::vector<PyMatrix*> m, Array<float, 1> w1, Array<float, 1> b1,
                             Array<float, 1> w2, Array<float, 1> b2, int forced) {
    require(heads >= 0 && heads <= kMostHeads && ffn >= 0, "heads or ffn out of range");
    const int D = e_.width, A = heads * e_.head_size;
    const int shapes[6][2] = {{A, D}, {A, D}, {A, D}, {D, A}, {ffn, D}, {D, ffn}};
    require(m.size() == 6 && std::count(m.begin(), m.end(), nullptr) == 0, "a layer has six matrices");
    require(forced >= -1 && forced < 3, "no such form");
    Layer layer;
    Matrix* targets[] = {&layer.query, &layer.key, &layer.value, &layer.output, &layer.ffn_in, &layer.ffn_out};
    std::vector<int> forms;
    for (int i = 0; i < 6; ++i) {
      m[i]->check();
      require(m[i]->rows == shapes[i][0] && m[i]->columns == shapes[i][1], "matrix shape");
      const size_t fours = count_blocks4x4(m[i]->rows, m[i]->list());
      const Form form = forced >= 0 ? static_cast<Form>(forced)
                                    : plan(costs_, m[i]->rows, m[i]->columns, fours, m[i]->index.shape(0));
      *targets[i] = make_matrix(m[i]->rows, m[i]->columns, m[i]->list(), m[i]->scale.data(), m[i]->bias.data(), form,
                                *e_.kernels);
      forms.push_back(static_cast<int>(form));
    }
    layer.attention_norm = norm(w1, b1);
    layer.ffn_norm = norm(w2, b2);
    layer.heads = heads;
    layer.ffn = ffn;
    e_.max_heads = std::max(e_.max_heads, heads);
    e_.layers.push_back(std::move(layer));
    return forms;
  }

  void set_span(Array<float, 2> weight, Array<float, 1> bias) {
    require(weight.shape(0) == 2 && weight.shape(1) == static_cast<size_t>(e_.width) && bias.shape(0) == 2, "span shape");
    e_.span = linear(weight, bias);
  }

  void set_classes(Array<float, 2> pooler_weight, Array<float, 1> pooler_bias, bool tanh, Array<float, 2> weight,
                   Array<float, 1> bias) {
    const size_t width = static_cast<size_t>(e_.width);
    require(pooler_weight.shape(0) == width && pooler_weight.shape(1) == width && pooler_bias.shape(0) == width,
            "pooler shape");
    require(weight.shape(0) > 0 && weight.shape(0) == bias.shape(0) && weight.shape(1) == width, "classes shape");
    e_.pooler = linear(pooler_weight, pooler_bias);
    e_.pooler_is_tanh = tanh;
    e_.classes = linear(weight, bias);
  }

  // what: 0 span logits [T, 2], 1 class logits [B, classes], 2 hidden states [T, D].
  nb::object forward(Array<int32_t, 1> ids, Array<int32_t, 1> types, Array<int32_t, 1> lengths, int what) {
    require(what != 0 || e_.span.rows(), "no span head");
    require(what != 1 || e_.classes.rows(), "no classification head");
    const size_t rows = what == 1 ? lengths.shape(0) : ids.shape(0);
    const size_t columns = what == 0 ? 2 : what == 1 ? e_.classes.bias.size() : static_cast<size_t>(e_.width);
    std::unique_ptr<float[]> memory(new float[rows * columns + 1]);
    Encoder::Outputs outputs;
    (what == 0 ? outputs.span : what == 1 ? outputs.classes : outputs.hidden) = memory.get();
    run(ids, types, lengths, outputs);
    float* data = memory.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, columns}, owner));
  }

  // Seconds by part of a pass without heads, the mean of all threads.
  nb::dict profile(Array<int32_t, 1> ids, Array<int32_t, 1> types, Array<int32_t, 1> lengths) {
    static constexpr const char* names[kParts] = {"products", "attention",  "activation", "quantising",
                                                  "norms",    "embeddings", "waiting"};
    std::vector<double> seconds(static_cast<size_t>(pool_->size()) * kParts);
    run(ids, types, lengths, {nullptr, nullptr, nullptr, seconds.data()});
    nb::dict parts;
    for (int part = 0; part < kParts; ++part) {
      double sum = 0;
      for (int t = 0; t < pool_->size(); ++t) sum += seconds[static_cast<size_t>(t) * kParts + part];
      parts[names[part]] = sum / pool_->size();
    }
    return parts;
  }

  std::string isa() const { return set_.name; }
  int threads() const { return pool_->size(); }

 private:
  void run(const Array<int32_t, 1>& given_ids, const Array<int32_t, 1>& given_types, const Array<int32_t, 1>& given_lengths,
           const Encoder::Outputs& outputs) {
    // copies: another thread may write to the caller's arrays once they are checked
    const std::vector<int32_t> ids = ints(given_ids), types = ints(given_types), lengths = ints(given_lengths);
    require(!e_.layers.empty(), "no layers");
    require(ids.size() == types.size(), "ids and types differ in length");
    int64_t total = 0;
    for (const int32_t length : lengths) {
      require(length > 0 && length <= e_.position.rows, "a length out of range");
      total += length;
    }
    require(total == static_cast<int64_t>(ids.size()), "lengths do not sum to the number of tokens");
    for (const int32_t id : ids) require(id >= 0 && id < e_.token.rows, "a token id out of range");
    for (const int32_t type : types)
      require(!e_.token_type.values || (type >= 0 && type < e_.token_type.rows), "a token type out of range");
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    e_.forward(ids.data(), types.data(), lengths.data(), static_cast<int>(lengths.size()), *pool_, arena_, outputs);
  }

  static std::vector<int32_t> ints(const Array<int32_t, 1>& given) {
    return {given.data(), given.data() + given.shape(0)};
  }

  static Linear linear(const Array<float, 2>& weight, const Array<float, 1>& bias) {
    return {std::vector<float>(weight.data(), weight.data() + weight.size()), floats(bias)};
  }

  Norm norm(const Array<float, 1>& weight, const Array<float, 1>& bias) const {
    require(weight.shape(0) == static_cast<size_t>(e_.width) && bias.shape(0) == weight.shape(0), "norm shape");
    return {floats(weight), floats(bias)};
  }

  const InstructionSet& set_;
  PoolOwner pool_;
  const Costs costs_;
  Encoder e_;
  std::vector<Array<int8_t, 2>> values_;  // of the tables
  std::vector<Array<float, 1>> scales_;
  Arena arena_;
  std::mutex mutex_;
};

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "thinbert's native core.";
  m.def(
      "cpu_features",
      [] {
        std::vector<std::string> names;
        for (const CpuFeature& feature : cpu_features())
          if (feature.present) names.emplace_back(feature.name);
        return names;
      },
      "Instruction-set extensions usable on this machine, by their /proc/cpuinfo names.");
  m.def(
      "instruction_sets",
      [] {
        nb::list sets;
        for (const InstructionSet& set : instruction_sets())
          sets.append(nb::make_tuple(std::string(set.name), set.needs, set.kernels != nullptr, set.supported));
        return sets;
      },
      "(name, features needed, built, supported here) of every instruction set, best first.");
  m.def(
      "measure_costs",
      [](const std::string& isa) {
        const Costs c = measure_costs(*find_set(isa).kernels);
        return std::vector<double>{c.dense, c.block4x4, c.block1x4};
      },
      "isa"_a, "Nanoseconds for a block of 16 weights dense, of 16 in the 4x4 form, of 4 in the 1x4 form.");
  m.def(
      "measure_ceiling", [](const std::string& isa) { return measure_ceiling(*find_set(isa).kernels); }, "isa"_a,
      "10^9 byte products a second on registers alone; 0 where it is not known.");
  nb::class_<PyMatrix>(m, "Matrix")
      .def(nb::init<int, int, Array<uint32_t, 1>, Array<uint16_t, 1>, Array<int8_t, 2>, Array<float, 1>, Array<float, 1>>(),
           "rows"_a, "columns"_a, "start"_a.noconvert(), "index"_a.noconvert(), "values"_a.noconvert(),
           "scale"_a.noconvert(), "bias"_a.noconvert());
  nb::class_<PyEncoder>(m, "Encoder")
      .def(nb::init<const std::string&, int, int, int, int, float, std::vector<double>>(), "isa"_a, "threads"_a, "width"_a,
           "head_size"_a, "activation"_a, "eps"_a, "costs"_a)
      .def("set_embeddings", &PyEncoder::set_embeddings, "tables"_a, "weight"_a.noconvert(), "bias"_a.noconvert())
      .def("add_layer", &PyEncoder::add_layer, "heads"_a, "ffn"_a, "matrices"_a, "attention_norm_weight"_a.noconvert(),
           "attention_norm_bias"_a.noconvert(), "ffn_norm_weight"_a.noconvert(), "ffn_norm_bias"_a.noconvert(),
           "form"_a = -1)
      .def("set_span", &PyEncoder::set_span, "weight"_a.noconvert(), "bias"_a.noconvert())
      .def("set_classes", &PyEncoder::set_classes, "pooler_weight"_a.noconvert(), "pooler_bias"_a.noconvert(), "tanh"_a,
           "weight"_a.noconvert(), "bias"_a.noconvert())
      .def("forward", &PyEncoder::forward, "ids"_a.noconvert(), "types"_a.noconvert(), "lengths"_a.noconvert(), "what"_a = 0)
      .def("profile", &PyEncoder::profile, "ids"_a.noconvert(), "types"_a.noconvert(), "lengths"_a.noconvert())
      .def_prop_ro("isa", &PyEncoder::isa)
      .def_prop_ro("threads", &PyEncoder::threads);
}
