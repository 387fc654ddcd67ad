#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "comm/suite.h"
#include "core/rng.h"

namespace farspan::testing {
namespace {

constexpr std::array kTypes{DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64};

// Draws that follow one another.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t stream) : rng_(seed, stream) {}
  std::uint64_t below(std::uint64_t bound) { return rng_.below(next_++, bound); }
  int number(int bound) { return static_cast<int>(below(static_cast<std::uint64_t>(bound))); }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

// Element `i` of rank `rank`'s input of operation `number`: a value whose sums round in f32 and
// bf16.
void fill(std::vector<std::byte>& data, DType dtype, std::uint64_t seed, int rank, int number) {
  // xorshift64*: as many draws as a counter-based generator would make too slow here.
  std::uint64_t state = stream_id("comm.test.data", seed * 1000 + static_cast<std::uint64_t>(rank),
                                  static_cast<std::uint64_t>(number)) |
                        1;
  const std::size_t element = size_of(dtype);
  for (std::size_t i = 0; i * element < data.size(); ++i) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    const std::uint64_t bits = state * 0x2545f4914f6cdd1du;
    const double uniform = static_cast<double>(bits >> 11) * 0x1p-53;
    const double value = (uniform - 0.5) * (i % 7 == 0 ? 1e6 : 1.0);
    std::byte* at = data.data() + i * element;
    const auto put = [&](auto v) { std::memcpy(at, &v, sizeof v); };
    switch (dtype) {
      case DType::kF32:
        put(static_cast<float>(value));
        break;
      case DType::kBF16:
        put(BFloat16(static_cast<float>(value)));
        break;
      case DType::kF64:
        put(value);
        break;
      case DType::kI32:
        put(static_cast<std::int32_t>(bits));
        break;
      default:
        put(static_cast<std::int64_t>(bits));
    }
  }
}

template <typename Stored, typename Wide>
void reference_of(ReduceOp op, const std::vector<std::vector<std::byte>>& inputs,
                  std::vector<std::byte>& out) {
  for (std::size_t at = 0; at < out.size(); at += sizeof(Stored)) {
    Wide sum{};
    for (std::size_t rank = 0; rank < inputs.size(); ++rank) {
      Stored stored;
      std::memcpy(&stored, inputs[rank].data() + at, sizeof stored);
      const auto value = static_cast<Wide>(stored);
      if (rank == 0)
        sum = value;
      else if (op == ReduceOp::kMax)
        sum = std::max(sum, value);
      else if (op == ReduceOp::kMin)
        sum = std::min(sum, value);
      else if constexpr (std::is_integral_v<Wide>)
        sum = static_cast<Wide>(static_cast<std::make_unsigned_t<Wide>>(sum) +
                                static_cast<std::make_unsigned_t<Wide>>(value));
      else
        sum += value;
    }
    const auto result = static_cast<Stored>(sum);
    std::memcpy(out.data() + at, &result, sizeof result);
  }
}

std::vector<std::byte> reduced(DType dtype, ReduceOp op,
                               const std::vector<std::vector<std::byte>>& inputs) {
  std::vector<std::byte> out(inputs[0].size());
  switch (dtype) {
    case DType::kF32:
      reference_of<float, float>(op, inputs, out);
      break;
    case DType::kBF16:
      reference_of<BFloat16, float>(op, inputs, out);
      break;
    case DType::kF64:
      reference_of<double, double>(op, inputs, out);
      break;
    case DType::kI32:
      reference_of<std::int32_t, std::int32_t>(op, inputs, out);
      break;
    default:
      reference_of<std::int64_t, std::int64_t>(op, inputs, out);
  }
  return out;
}

Tensor tensor_of(std::vector<std::byte>& data, DType dtype) {
  return {.data = data.data(),
          .dtype = dtype,
          .shape = {static_cast<std::int64_t>(data.size() / size_of(dtype))},
          .device = {DeviceKind::kCpu, 0}};
}

// One operation of the program: buffers, what is expected in them, and its Pending.
struct Step {
  std::string text;
  std::vector<std::byte> in, out, expected;
  std::vector<std::vector<std::byte>> parts, expected_parts;  // exchange: received, by rank
  bool in_place = false;
  Pending pending;
};

class Program {
 public:
  Program(Communicator& world, std::uint64_t seed, bool dry)
      : world_(world), seed_(seed), dry_(dry), rank_(world.rank()), size_(world.size()) {}

  void begin(Step& step, int number) {
    Draws draws(seed_, stream_id("comm.test.step", static_cast<std::uint64_t>(number)));
    number_ = number;
    dtype_ = kTypes[static_cast<std::size_t>(draws.number(static_cast<int>(kTypes.size())))];
    op_ = static_cast<ReduceOp>(draws.number(3));
    // Mostly small and uneven, sometimes empty, sometimes beyond MPI's eager limit and our chunks.
    const int magnitude = draws.number(20);
    elements_ = magnitude == 0    ? 0
                : magnitude == 19 ? (100000 + draws.number(100000)) / size_
                : magnitude > 15  ? draws.number(10000)
                                  : draws.number(100);
    const int kind = draws.number(8);
    step.text = fmt::format("seed {} step {} {} of {} {} on rank {} of {}", seed_, number,
                            name_of(static_cast<Collective>(kind)), elements_, name_of(dtype_),
                            rank_, size_);
    switch (static_cast<Collective>(kind)) {
      case Collective::kShift:
        return shift(step, draws.number(2 * size_ + 1) - size_);
      case Collective::kExchange:
        return exchange(step);
      case Collective::kAllReduce:
        step.in = input(rank_, elements_);
        step.expected = reduced(dtype_, op_, inputs(elements_));
        step.in_place = true;
        step.pending = world_.all_reduce(tensor_of(step.in, dtype_), op_, stream_);
        return;
      case Collective::kAllGather:
        return all_gather(step);
      case Collective::kReduceScatter:
        return reduce_scatter(step);
      case Collective::kAllToAll:
        return all_to_all(step);
      case Collective::kBroadcast: {
        const int root = draws.number(size_);
        step.expected = input(root, elements_);
        step.in = rank_ == root ? step.expected : input(rank_, elements_);
        step.in_place = true;
        step.pending = world_.broadcast(tensor_of(step.in, dtype_), root, stream_);
        return;
      }
      default:
        world_.barrier();
    }
  }

  void end(Step& step) {
    step.pending.wait();
    if (dry_) return;
    const std::vector<std::byte>& got = step.in_place ? step.in : step.out;
    expect_equal(step, got, step.expected);
    for (std::size_t r = 0; r < step.parts.size(); ++r)
      expect_equal(step, step.parts[r], step.expected_parts[r]);
  }

 private:
  std::vector<std::byte> input(int rank, int elements) const {
    std::vector<std::byte> data(static_cast<std::size_t>(elements) * size_of(dtype_));
    fill(data, dtype_, seed_, rank, number_);
    return data;
  }
  std::vector<std::vector<std::byte>> inputs(int elements) const {
    std::vector<std::vector<std::byte>> all;
    for (int r = 0; r < size_; ++r) all.push_back(input(r, elements));
    return all;
  }
  static std::vector<std::byte> slice(const std::vector<std::byte>& data, std::size_t block,
                                      int index) {
    const auto begin =
        data.begin() + static_cast<std::ptrdiff_t>(block * static_cast<std::size_t>(index));
    return {begin, begin + static_cast<std::ptrdiff_t>(block)};
  }
  std::size_t block_bytes() const { return static_cast<std::size_t>(elements_) * size_of(dtype_); }

  void shift(Step& step, int offset) {
    const int from = ((rank_ - offset) % size_ + size_) % size_;
    // Every rank sends another size.
    step.in = input(rank_, elements_ + 3 * rank_);
    step.expected = input(from, elements_ + 3 * from);
    step.out.resize(step.expected.size());
    step.pending = world_.shift(
        {.send = tensor_of(step.in, dtype_), .recv = tensor_of(step.out, dtype_), .offset = offset},
        stream_);
  }

  // Some pairs exchange nothing, the others each another size.
  void exchange(Step& step) {
    const auto elements_between = [&](int from, int to) {
      const CounterRng rng(seed_,
                           stream_id("comm.test.pairs", static_cast<std::uint64_t>(number_)));
      const std::uint64_t draw = rng.bits(static_cast<std::uint64_t>(from * size_ + to));
      return draw % 3 == 0 ? 0 : static_cast<int>(draw % 5) * elements_ / 4 + from;
    };
    step.in = input(rank_, 5 * elements_ / 4 + size_);
    std::vector<Message> sends, recvs;
    for (int peer = 0; peer < size_; ++peer) {
      const Tensor all = tensor_of(step.in, dtype_);
      sends.push_back({.peer = peer, .buffer = all.rows(0, elements_between(rank_, peer))});
      std::vector<std::byte> sent = input(peer, 5 * elements_ / 4 + size_);
      sent.resize(static_cast<std::size_t>(elements_between(peer, rank_)) * size_of(dtype_));
      step.expected_parts.push_back(std::move(sent));
    }
    for (int peer = size_ - 1; peer >= 0; --peer)
      step.parts.insert(
          step.parts.begin(),
          std::vector<std::byte>(step.expected_parts[static_cast<std::size_t>(peer)].size()));
    for (int peer = size_ - 1; peer >= 0; --peer)  // another order than the sends
      recvs.push_back(
          {.peer = peer, .buffer = tensor_of(step.parts[static_cast<std::size_t>(peer)], dtype_)});
    step.pending = world_.exchange(sends, recvs, stream_);
  }

  void all_gather(Step& step) {
    step.in = input(rank_, elements_);
    for (int r = 0; r < size_; ++r) {
      const std::vector<std::byte> part = input(r, elements_);
      step.expected.insert(step.expected.end(), part.begin(), part.end());
    }
    step.out.resize(step.expected.size());
    step.pending =
        world_.all_gather(tensor_of(step.in, dtype_), tensor_of(step.out, dtype_), stream_);
  }

  void reduce_scatter(Step& step) {
    step.in = input(rank_, elements_ * size_);
    step.expected = slice(reduced(dtype_, op_, inputs(elements_ * size_)), block_bytes(), rank_);
    step.out.resize(step.expected.size());
    step.pending = world_.reduce_scatter(tensor_of(step.in, dtype_), tensor_of(step.out, dtype_),
                                         op_, stream_);
  }

  void all_to_all(Step& step) {
    step.in = input(rank_, elements_ * size_);
    for (int r = 0; r < size_; ++r) {
      const std::vector<std::byte> part = slice(input(r, elements_ * size_), block_bytes(), rank_);
      step.expected.insert(step.expected.end(), part.begin(), part.end());
    }
    step.out.resize(step.expected.size());
    step.pending =
        world_.all_to_all(tensor_of(step.in, dtype_), tensor_of(step.out, dtype_), stream_);
  }

  static void expect_equal(const Step& step, const std::vector<std::byte>& got,
                           const std::vector<std::byte>& expected) {
    ASSERT_EQ(got.size(), expected.size()) << step.text;
    const auto [a, b] = std::mismatch(got.begin(), got.end(), expected.begin());
    EXPECT_TRUE(a == got.end()) << step.text << ": first differing byte " << a - got.begin();
  }

  Communicator& world_;
  std::uint64_t seed_;
  bool dry_;
  int rank_, size_;
  Stream stream_;
  int number_ = 0;
  DType dtype_ = DType::kF32;
  ReduceOp op_ = ReduceOp::kSum;
  int elements_ = 0;
};

}  // namespace

void run_random_program(Communicator& world, std::uint64_t seed, int length, bool dry) {
  Program program(world, seed, dry);
  Draws common(seed, stream_id("comm.test.groups"));
  Draws own(seed, stream_id("comm.test.order", static_cast<std::uint64_t>(world.rank())));
  for (int number = 0; number < length;) {
    std::vector<Step> steps(static_cast<std::size_t>(1 + common.number(5)));
    for (Step& step : steps) program.begin(step, number++);
    std::vector<std::size_t> order(steps.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[own.below(i)]);
    for (const std::size_t i : order) program.end(steps[i]);
  }
}

}  // namespace farspan::testing
