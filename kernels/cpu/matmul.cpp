// Layouts as oneDNN sees them: a (M, K), b (K, N), c (M, N); a transpose is a swap of strides.
// Measured on a Zen 5 with AVX-512 BF16, one thread: every layout that training needs runs in
// oneDNN's brgemm kernel within 15% of the best one (docs/benchmarks/kernels_cpu.md), so operands
// are not transposed or reordered first.
#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "kernels/cpu/exact.h"
#include "kernels/cpu/parallel.h"

namespace farspan::cpu {
namespace {

using dnnl::memory;

// Parts of a product in row_blocks, each computed by one thread. Their extents come from the
// block's alone, so that the bits do not depend on the number of threads.
constexpr std::int64_t kPartRows = 128;
constexpr std::int64_t kPartCols = 512;

// Tiles of a product that is added to an exact sum: the tile and its part of the sum, 320 KiB, stay
// in the second cache from block to block.
constexpr std::int64_t kExactRows = 64;
constexpr std::int64_t kExactCols = 256;

// Beyond this many shapes (ragged batches without end) the kept primitives are dropped.
constexpr std::size_t kMaxPlans = 4096;

memory::data_type data_type_of(DType dtype) {
  FARSPAN_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "matmul of {}", name_of(dtype));
  return dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
}

// One product c = op(a) op(b) (+ c), with leading dimensions of the stored matrices.
struct Product {
  std::int64_t m, n, k, ld_a, ld_b, ld_c;
  bool trans_a, trans_b, accumulate;
  DType in, out;

  auto key() const {
    return std::tuple(m, n, k, ld_a, ld_b, ld_c, trans_a, trans_b, accumulate, in, out);
  }
  friend bool operator<(const Product& x, const Product& y) { return x.key() < y.key(); }
};

// Where a product's matrices begin.
struct Operands {
  const std::byte *a, *b;
  std::byte* out;
};

// The product of rows [row, row + m) of op(a) and columns [col, col + n) of op(b).
Operands part_of(const Product& p, const Operands& whole, std::int64_t row, std::int64_t col) {
  const auto bytes = [](std::int64_t elements, DType dtype) {
    return static_cast<std::size_t>(elements) * size_of(dtype);
  };
  return {.a = whole.a + bytes(p.trans_a ? row : row * p.ld_a, p.in),
          .b = whole.b + bytes(p.trans_b ? col * p.ld_b : col, p.in),
          .out = whole.out + bytes(row * p.ld_c + col, p.out)};
}

struct Plan {
  dnnl::matmul primitive;
  std::array<memory, 4> memories;  // a, b, c, scratchpad
  std::array<dnnl_exec_arg_t, 4> arguments;
  std::size_t scratch_bytes;
};

struct AlignedDelete {
  void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
};

// Workspace that only grows.
class Workspace {
 public:
  std::byte* at_least(std::size_t bytes) {
    if (bytes > bytes_) {
      data_.reset();
      bytes_ = 0;
      data_.reset(new (std::align_val_t{64}, std::nothrow) std::byte[bytes]);
      if (!data_)
        throw Error(ExitCode::kExhausted,
                    {.what = fmt::format("cannot allocate {} bytes of workspace", bytes),
                     .where = "matrix product on the CPU",
                     .fix = "free memory, or shorten train.sequence_length"});
      bytes_ = bytes;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<std::byte[], AlignedDelete> data_;
  std::size_t bytes_ = 0;
};

}  // namespace

struct Matmul::Impl {
  Impl(MatmulConfig given, const RowOps& row_operations)
      : config(given), rows(row_operations), engine(dnnl::engine::kind::cpu, 0), stream(engine) {}

  // k > 0.
  void run(const Product& p, const Operands& data);
  // Blocks of rows, with borders as MatmulArgs::row_blocks says.
  void run_blocks(const Product& p, const Operands& data, std::span<const std::int64_t> borders);
  void run_exact(const ExactMatmulArgs& args);
  // Columns [col, ...) of rows [row, ...) of the sum, by one of `workers`; returns invalid terms.
  std::int64_t exact_tile(const ExactMatmulArgs& args, std::int64_t row, std::int64_t col);

  // Calls body(worker, i) for i in [0, n), on all threads, with a worker of one thread each.
  template <typename Body>
  void on_workers(std::int64_t n, const Body& body);

  Plan& plan(const Product& p);
  void multiply(const Product& p, const void* a, const void* b, void* c);
  void multiply_widened(const Product& whole, const std::uint16_t* a, const std::uint16_t* b,
                        std::byte* out);
  void widen(const std::uint16_t* src, std::int64_t ld, std::int64_t num_rows, std::int64_t cols,
             float* dst) const;

  MatmulConfig config;
  const RowOps& rows;
  dnnl::engine engine;
  dnnl::stream stream;
  std::map<Product, Plan> plans;
  Workspace scratch;
  Workspace tiles;
  Workspace sum_tile;
  std::vector<std::unique_ptr<Impl>> workers;
  struct Rows {
    std::int64_t begin, count;
  };
  std::vector<Rows> row_parts;
};

Plan& Matmul::Impl::plan(const Product& p) {
  if (const auto found = plans.find(p); found != plans.end()) return found->second;
  if (plans.size() >= kMaxPlans) plans.clear();
  const auto in = data_type_of(p.in);
  const memory::desc a({p.m, p.k}, in,
                       p.trans_a ? memory::dims{1, p.ld_a} : memory::dims{p.ld_a, 1});
  const memory::desc b({p.k, p.n}, in,
                       p.trans_b ? memory::dims{1, p.ld_b} : memory::dims{p.ld_b, 1});
  const memory::desc c({p.m, p.n}, data_type_of(p.out), memory::dims{p.ld_c, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (p.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::primitive_desc description({a, b, c}, attributes, engine);
  const memory::desc scratch_desc = description.scratchpad_desc();
  Plan made{.primitive = dnnl::matmul(description),
            .memories = {memory(a, engine, DNNL_MEMORY_NONE), memory(b, engine, DNNL_MEMORY_NONE),
                         memory(c, engine, DNNL_MEMORY_NONE),
                         memory(scratch_desc, engine, DNNL_MEMORY_NONE)},
            .arguments = {},
            .scratch_bytes = scratch_desc.get_size()};
  constexpr std::array<int, 4> kNames{DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                      DNNL_ARG_SCRATCHPAD};
  for (std::size_t i = 0; i < kNames.size(); ++i)
    made.arguments[i] = {kNames[i], made.memories[i].get()};
  return plans.emplace(p, std::move(made)).first->second;
}

void Matmul::Impl::multiply(const Product& p, const void* a, const void* b, void* c) {
  const ThreadCount threads(config.num_threads);
  try {
    Plan& ready = plan(p);
    const std::array<void*, 4> data{const_cast<void*>(a), const_cast<void*>(b), c,
                                    scratch.at_least(ready.scratch_bytes)};
    for (std::size_t i = 0; i < data.size(); ++i) ready.memories[i].set_data_handle(data[i]);
    // The C entry point takes the kept array; the C++ one builds a hash map and a vector per call.
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(ready.primitive.get(), stream.get(),
                               static_cast<int>(ready.arguments.size()), ready.arguments.data()),
        "could not execute a matmul");
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_out_of_memory)
      throw Error(ExitCode::kExhausted, {.what = "oneDNN ran out of memory",
                                         .where = "matrix product on the CPU",
                                         .fix = "free memory, or shorten train.sequence_length"});
    FARSPAN_CHECK(false, "oneDNN: {} (matmul {} -> {}, M {} N {} K {}, trans_a {} trans_b {})",
                  e.what(), name_of(p.in), name_of(p.out), p.m, p.n, p.k, p.trans_a, p.trans_b);
  }
}

// A rectangle of a stored bf16 matrix as a dense f32 one.
void Matmul::Impl::widen(const std::uint16_t* src, std::int64_t ld, std::int64_t num_rows,
                         std::int64_t cols, float* dst) const {
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, cols));
  parallel_for(config.num_threads, num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) rows.widen(src + r * ld, dst + r * cols, cols);
  });
}

void Matmul::Impl::multiply_widened(const Product& whole, const std::uint16_t* a,
                                    const std::uint16_t* b, std::byte* out) {
  const std::int64_t tm = std::min(config.tile, whole.m);
  const std::int64_t tn = std::min(config.tile, whole.n);
  const std::int64_t tk = std::min(config.tile, whole.k);
  auto* tile_a = reinterpret_cast<float*>(
      tiles.at_least(static_cast<std::size_t>(tm * tk + tk * tn + tm * tn) * sizeof(float)));
  float* tile_b = tile_a + tm * tk;
  float* tile_c = tile_b + tk * tn;
  const bool narrow = whole.out == DType::kBF16;
  for (std::int64_t i = 0; i < whole.m; i += tm)
    for (std::int64_t j = 0; j < whole.n; j += tn) {
      const std::int64_t m = std::min(tm, whole.m - i);
      const std::int64_t n = std::min(tn, whole.n - j);
      float* c = narrow ? tile_c : reinterpret_cast<float*>(out) + i * whole.ld_c + j;
      for (std::int64_t l = 0; l < whole.k; l += tk) {
        const std::int64_t k = std::min(tk, whole.k - l);
        const auto* from_a = a + (whole.trans_a ? l * whole.ld_a + i : i * whole.ld_a + l);
        const auto* from_b = b + (whole.trans_b ? j * whole.ld_b + l : l * whole.ld_b + j);
        widen(from_a, whole.ld_a, whole.trans_a ? k : m, whole.trans_a ? m : k, tile_a);
        widen(from_b, whole.ld_b, whole.trans_b ? n : k, whole.trans_b ? k : n, tile_b);
        multiply({.m = m,
                  .n = n,
                  .k = k,
                  .ld_a = whole.trans_a ? m : k,
                  .ld_b = whole.trans_b ? k : n,
                  .ld_c = narrow ? n : whole.ld_c,
                  .trans_a = whole.trans_a,
                  .trans_b = whole.trans_b,
                  .accumulate = whole.accumulate || l > 0,
                  .in = DType::kF32,
                  .out = DType::kF32},
                 tile_a, tile_b, c);
      }
      if (!narrow) continue;
      auto* to = reinterpret_cast<std::uint16_t*>(out) + i * whole.ld_c + j;
      const std::int64_t grain = std::max<std::int64_t>(1, 16384 / n);
      parallel_for(config.num_threads, m, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r)
          rows.narrow(tile_c + r * n, to + r * whole.ld_c, n);
      });
    }
}

void Matmul::Impl::run(const Product& p, const Operands& data) {
  if (p.in == DType::kBF16 && !config.native_bf16)
    multiply_widened(p, reinterpret_cast<const std::uint16_t*>(data.a),
                     reinterpret_cast<const std::uint16_t*>(data.b), data.out);
  else
    multiply(p, data.a, data.b, data.out);
}

// Each worker holds primitives that were made for one thread: how oneDNN cuts a product depends on
// the number that it is given. Errors leave the parallel loop by hand.
template <typename Body>
void Matmul::Impl::on_workers(std::int64_t n, const Body& body) {
  while (workers.size() < static_cast<std::size_t>(config.num_threads)) {
    MatmulConfig one = config;
    one.num_threads = 1;
    workers.push_back(std::make_unique<Impl>(one, rows));
  }
  std::exception_ptr failure;
  parallel_for(config.num_threads, n, 1, [&](std::int64_t begin, std::int64_t end) {
    try {
      Impl& worker = *workers[static_cast<std::size_t>(omp_get_thread_num())];
      for (std::int64_t i = begin; i < end; ++i) body(worker, i);
    } catch (...) {
#pragma omp critical(farspan_matmul_failure)
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

void Matmul::Impl::run_blocks(const Product& p, const Operands& data,
                              std::span<const std::int64_t> borders) {
  const std::int64_t col_parts = (p.n + kPartCols - 1) / kPartCols;
  row_parts.clear();
  for (std::size_t i = 0; i + 1 < borders.size(); ++i)
    for (std::int64_t row = borders[i]; row < borders[i + 1]; row += kPartRows)
      row_parts.push_back({row, std::min(kPartRows, borders[i + 1] - row)});
  on_workers(static_cast<std::int64_t>(row_parts.size()) * col_parts,
             [&](Impl& worker, std::int64_t i) {
               const auto [row, count] = row_parts[static_cast<std::size_t>(i / col_parts)];
               const std::int64_t col = i % col_parts * kPartCols;
               Product part = p;
               part.m = count;
               part.n = std::min(kPartCols, p.n - col);
               worker.run(part, part_of(p, data, row, col));
             });
}

std::int64_t Matmul::Impl::exact_tile(const ExactMatmulArgs& args, std::int64_t row,
                                      std::int64_t col) {
  const std::int64_t m = args.a.shape[1], n = args.b.shape[1];
  Product p{.m = std::min(kExactRows, m - row),
            .n = std::min(kExactCols, n - col),
            .k = 0,
            .ld_a = m,
            .ld_b = n,
            .ld_c = std::min(kExactCols, n - col),
            .trans_a = true,
            .trans_b = false,
            .accumulate = false,
            .in = args.a.dtype,
            .out = DType::kF32};
  std::byte* tile = sum_tile.at_least(kExactRows * kExactCols * sizeof(float));
  const auto* sums = reinterpret_cast<const float*>(tile);
  const std::size_t element = size_of(args.a.dtype);
  std::int64_t invalid = 0;
  for (std::size_t i = 0; i + 1 < args.row_blocks.size(); ++i) {
    const std::int64_t begin = args.row_blocks[i];
    p.k = args.row_blocks[i + 1] - begin;
    if (p.k == 0) continue;
    run(p, {args.a.data + static_cast<std::size_t>(begin * m + row) * element,
            args.b.data + static_cast<std::size_t>(begin * n + col) * element, tile});
    for (std::int64_t r = 0; r < p.m; ++r) {
      const std::int64_t to = (row + r) * n + col;
      invalid += add_exact_terms(sums + r * p.n, args.sum.high.ptr<std::int64_t>() + to,
                                 args.sum.low.ptr<std::int64_t>() + to, p.n);
    }
  }
  return invalid;
}

void Matmul::Impl::run_exact(const ExactMatmulArgs& args) {
  const std::int64_t row_tiles = (args.a.shape[1] + kExactRows - 1) / kExactRows;
  const std::int64_t col_tiles = (args.b.shape[1] + kExactCols - 1) / kExactCols;
  std::atomic<std::int64_t> invalid{0};
  on_workers(row_tiles * col_tiles, [&](Impl& worker, std::int64_t i) {
    invalid += worker.exact_tile(args, i / col_tiles * kExactRows, i % col_tiles * kExactCols);
  });
  *args.sum.invalid.ptr<std::int64_t>() += invalid;
}

Matmul::Matmul(MatmulConfig config, const RowOps& rows)
    : impl_(std::make_unique<Impl>(config, rows)) {}
Matmul::~Matmul() = default;

void Matmul::run(const MatmulArgs& args) {
  const bool accumulate = args.mode == GradMode::kAccumulate;
  const std::int64_t k = args.a.shape[args.trans_a ? 0 : 1];
  const Product product{.m = args.out.shape[0],
                        .n = args.out.shape[1],
                        .k = k,
                        .ld_a = args.a.shape[1],
                        .ld_b = args.b.shape[1],
                        .ld_c = args.out.shape[1],
                        .trans_a = args.trans_a,
                        .trans_b = args.trans_b,
                        .accumulate = accumulate,
                        .in = args.a.dtype,
                        .out = args.out.dtype};
  if (product.m == 0 || product.n == 0) return;
  if (k == 0) {  // the empty sum
    if (!accumulate) std::memset(args.out.data, 0, args.out.bytes());
    return;
  }
  const Operands data{args.a.data, args.b.data, args.out.data};
  if (args.row_blocks.empty())
    impl_->run(product, data);
  else
    impl_->run_blocks(product, data, args.row_blocks);
}

void Matmul::run(const ExactMatmulArgs& args) { impl_->run_exact(args); }

bool onednn_has_native_bf16() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_amx:
      return true;
    default:
      return false;
  }
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace farspan::cpu
