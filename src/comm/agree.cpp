#include "comm/agree.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace farspan {
namespace {

constexpr std::size_t kShownLength = 60;

// Every rank's `mine`, by rank.
template <typename T>
std::vector<T> gather(Communicator& comm, const T& mine) {
  Stream stream;
  T copy = mine;
  std::vector<T> all(static_cast<std::size_t>(comm.size()));
  const auto bytes = static_cast<std::int64_t>(sizeof(T));
  comm.all_gather(host_tensor(reinterpret_cast<std::uint8_t*>(&copy), {bytes}),
                  host_tensor(reinterpret_cast<std::uint8_t*>(all.data()), {bytes * comm.size()}),
                  stream)
      .wait();
  return all;
}

// Every rank's text, by rank, given their lengths.
std::vector<std::string> gather_texts(Communicator& comm, std::string_view mine,
                                      const std::vector<std::uint64_t>& lengths) {
  Stream stream;
  const std::uint64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::string padded(mine);
  padded.resize(longest);
  std::string all(longest * lengths.size(), '\0');
  const auto count = static_cast<std::int64_t>(longest);
  comm.all_gather(host_tensor(reinterpret_cast<std::uint8_t*>(padded.data()), {count}),
                  host_tensor(reinterpret_cast<std::uint8_t*>(all.data()), {count * comm.size()}),
                  stream)
      .wait();
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < lengths.size(); ++r)
    texts.push_back(all.substr(r * longest, lengths[r]));
  return texts;
}

// Two independent 64-bit hashes (FNV-1a with different bases): equal values need no second look.
struct Digest {
  std::uint64_t length, a, b;
  friend bool operator==(const Digest&, const Digest&) = default;
};
Digest digest(std::string_view text) {
  Digest d{.length = text.size(), .a = 0xcbf29ce484222325u, .b = 0x9ae16a3b2f90404fu};
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    d.a = (d.a ^ byte) * 0x100000001b3u;
    d.b = (d.b + byte + 1) * 0x9e3779b97f4a7c15u;
    d.b ^= d.b >> 29;
  }
  return d;
}

// "rank 3", "ranks 0-2, 5"
std::string ranks_text(const std::vector<int>& ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t j = i;
    while (j + 1 < ranks.size() && ranks[j + 1] == ranks[j] + 1) ++j;
    if (i != 0) out += ", ";
    out += i == j ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[j]);
    i = j + 1;
  }
  return out;
}

// The part of `value` to show, given where the values first differ: the line around that place.
std::string shown(const std::string& value, std::size_t difference) {
  if (value.size() <= kShownLength && value.find('\n') == std::string::npos)
    return fmt::format("'{}'", value);
  if (difference >= value.size()) return fmt::format("nothing after byte {}", value.size());
  std::size_t begin = value.rfind('\n', difference == 0 ? 0 : difference - 1);
  begin = begin == std::string::npos ? 0 : begin + 1;
  if (begin > difference) begin = difference;
  if (difference - begin > kShownLength / 2) begin = difference - kShownLength / 2;
  std::size_t end = value.find('\n', difference);
  end = std::min(end == std::string::npos ? value.size() : end, begin + kShownLength);
  return fmt::format("'{}'", value.substr(begin, end - begin));
}

std::size_t first_difference(const std::vector<std::string>& values) {
  for (std::size_t i = 0;; ++i)
    for (const std::string& value : values) {
      const bool ends = i >= value.size(), ends_first = i >= values[0].size();
      if (ends != ends_first || (!ends && value[i] != values[0][i])) return i;
      if (ends && &value == &values.back()) return i;
    }
}

struct Outcome {
  std::int32_t code;
  std::int32_t reports;  // an error of this rank's own, not one passed on from another
  std::uint64_t what, where, fix;
};

// What `body` threw, as an Error; nothing when it returned.
std::optional<SharedError> outcome_of(const std::function<void()>& body, int rank) {
  try {
    body();
    return std::nullopt;
  } catch (const SharedError& e) {
    return e;
  } catch (const Error& e) {
    return SharedError(e, rank, true);
  } catch (const std::bad_alloc&) {
    return SharedError(Error(ExitCode::kExhausted, {.what = "out of host memory"}), rank, true);
  } catch (const std::exception& e) {
    return SharedError(Error(ExitCode::kInternal, {.what = e.what()}), rank, true);
  } catch (...) {
    return SharedError(Error(ExitCode::kInternal, {.what = "an unknown exception"}), rank, true);
  }
}

Outcome summary(const std::optional<SharedError>& error) {
  if (!error) return {};
  const ErrorText& text = error->text();
  return {.code = static_cast<std::int32_t>(error->code()),
          .reports = error->report() ? 1 : 0,
          .what = text.what.size(),
          .where = text.where.size(),
          .fix = text.fix.size()};
}

}  // namespace

void agree_on(Communicator& comm, std::string_view subject, std::string_view value) {
  const std::vector<Digest> digests = gather(comm, digest(value));
  const auto equal = [&](const Digest& d) { return d == digests[0]; };
  if (std::all_of(digests.begin(), digests.end(), equal)) return;

  std::vector<std::uint64_t> lengths;
  for (const Digest& d : digests) lengths.push_back(d.length);
  const std::vector<std::string> values = gather_texts(comm, value, lengths);
  const std::size_t difference = first_difference(values);
  std::vector<std::pair<std::string, std::vector<int>>> groups;  // by lowest rank
  for (int r = 0; r < comm.size(); ++r) {
    const std::string& v = values[static_cast<std::size_t>(r)];
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == v; });
    if (group == groups.end()) group = groups.insert(groups.end(), {v, {}});
    group->second.push_back(r);
  }
  std::string list;
  for (const auto& [v, ranks] : groups) {
    if (!list.empty()) list += ", ";
    list += ranks_text(ranks) + " " + shown(v, difference);
  }
  const Error error(ExitCode::kUsage,
                    {.what = fmt::format("{} differs between ranks: {}", subject, list),
                     .fix = "start every rank from the same build, files and command line"});
  throw SharedError(error, 0, comm.rank() == 0);
}

void together(Communicator& comm, const std::function<void()>& body) {
  const std::optional<SharedError> own = outcome_of(body, comm.rank());
  std::vector<Outcome> outcomes;
  try {
    outcomes = gather(comm, summary(own));
  } catch (const SharedError&) {
    if (own) throw *own;  // the job has failed meanwhile; this rank's own error says more
    throw;
  }
  // The lowest rank that failed by itself; else (errors passed on from other groups) the lowest.
  int failed = -1;
  for (int r = comm.size() - 1; r >= 0; --r) {
    const Outcome& o = outcomes[static_cast<std::size_t>(r)];
    const bool better =
        failed < 0 || o.reports != 0 || outcomes[static_cast<std::size_t>(failed)].reports == 0;
    if (o.code != 0 && better) failed = r;
  }
  if (failed < 0) return;
  const Outcome& o = outcomes[static_cast<std::size_t>(failed)];
  std::string text;
  if (comm.rank() == failed) text = own->text().what + own->text().where + own->text().fix;
  text.resize(o.what + o.where + o.fix);
  Stream stream;
  const auto count = static_cast<std::int64_t>(text.size());
  comm.broadcast(host_tensor(reinterpret_cast<std::uint8_t*>(text.data()), {count}), failed, stream)
      .wait();
  if (own) throw SharedError(*own, comm.rank(), comm.rank() == failed && o.reports != 0);
  const std::string where = text.substr(o.what, o.where);
  throw SharedError(
      Error(static_cast<ExitCode>(o.code),
            {.what = text.substr(0, o.what),
             .where = fmt::format("rank {}{}{}", failed, where.empty() ? "" : ", ", where),
             .fix = text.substr(o.what + o.where)}),
      failed, false);
}

}  // namespace farspan
