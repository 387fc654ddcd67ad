// Speed of attention.
//
//   bench_attention              one rank by mask, then 16 emulated ranks on packed documents
//   bench_attention --head-dim 64 --tokens 2048,8192 --mask causal,window
//   bench_attention --ranks 64 --layout balanced,zigzag --doc-lengths lognormal:3000:1.2
//   bench_attention --overlap    ranks as threads: transfers behind the compute or not
//   mpirun -np 2 build/cpu/bench_attention --overlap --mpi
//   build/cuda/bench_attention --device cuda --kernel own,cudnn --any-order --tokens 8192,32768
#include "bench_attention.h"

#include <CLI/CLI.hpp>

#include "comm/factory.h"

namespace farspan::bench {
namespace {

void add_options(CLI::App& app, Options& o) {
  const auto lists = [](CLI::Option* option) {
    option->delimiter(',')->allow_extra_args(false);
    option->description(option->get_description() + " (a,b,c for several)");
  };
  app.add_option("--q-heads", o.q_heads, "query heads")->check(CLI::PositiveNumber);
  app.add_option("--kv-heads", o.kv_heads, "key/value heads; divides --q-heads")
      ->check(CLI::PositiveNumber);
  app.add_option("--head-dim", o.head_dim)->check(CLI::Range(1, 256));
  lists(app.add_option("--tokens", o.tokens,
                       "lengths to measure: of the sequence; with --overlap, of a rank's share")
            ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32)));
  app.add_option("--dtype", o.dtype)->check(CLI::IsMember({"bf16", "fp32"}));
  auto* device = app.add_option("--device", o.device, "cuda: by mask, on GPU 0")
                     ->check(CLI::IsMember({"cpu", "cuda"}));
  lists(app.add_option("--kernel", o.kernels, "with --device cuda; default auto")
            ->check(CLI::IsMember({"auto", "own", "cudnn"}))
            ->needs(device));
  app.add_flag("!--any-order", o.deterministic,
               "with --device cuda: gradients that need not repeat bit by bit")
      ->needs(device);
  app.add_option("--isa", o.isa, "instruction set")
      ->check(CLI::IsMember({"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx"}));
  app.add_option("--threads", o.threads, "of a rank")->check(CLI::PositiveNumber);
  app.add_option("--repeat", o.repeat, "calls to take the fastest and the median of")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", o.json, "one JSON object a line");
  app.add_option("--seed", o.seed, "of the documents' lengths");

  auto* mask = app.add_option("--mask", o.masks, "one rank: masks to measure; default all")
                   ->check(CLI::IsMember(mask_names()));
  lists(mask);
  app.add_option("--window", o.window, "of --mask window and sinks")->check(CLI::PositiveNumber);
  app.add_option("--sinks", o.sinks, "of --mask sinks")->check(CLI::PositiveNumber);
  lists(app.add_option("--doc-lengths", o.documents,
                       "packed documents: one, equal:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, "
                       "pareto:ALPHA:LEAST, bimodal:SHARE:LONG:LOW:HIGH, or a file of lengths"));

  auto* ranks = app.add_option("--ranks", o.ranks, "ranks to emulate; with --overlap, threads")
                    ->check(CLI::Range(1, 4096));
  ranks->excludes(mask);
  lists(app.add_option("--layout", o.layouts, "with ranks; default zigzag and balanced")
            ->check(CLI::IsMember({"contiguous", "zigzag", "striped", "balanced"})));
  app.add_flag("--whole", o.whole,
               "emulated ranks run the strategy's own code, without its transfers, instead of its "
               "kernels alone")
      ->needs(ranks);
  auto* overlap =
      app.add_flag("--overlap", o.overlap, "ranks run side by side and exchange")->excludes(mask);
  app.add_option("--strategy", o.strategy, "of --overlap and --whole")
      ->check(CLI::IsMember({"ring", "allgather", "ulysses", "hybrid"}));
  app.add_option("--ulysses", o.ulysses, "ranks of a Ulysses group, with --overlap")
      ->check(CLI::PositiveNumber)
      ->needs(overlap);
  app.add_flag("--mpi", o.mpi, "--overlap over MPI, under mpirun")->needs(overlap);
  app.add_flag("--no-progress", o.no_progress, "--mpi without the progress thread");
}

[[noreturn]] void refuse(std::string what, std::string fix) {
  throw Error(ExitCode::kUsage, {.what = std::move(what), .fix = std::move(fix)});
}

template <typename T>
void set_default(T& value, T otherwise) {
  if (value == T{}) value = std::move(otherwise);
}

enum class Part { kMasks, kDevice, kEmulated, kOverlap };

// Fills in what was not given, for one part of the program, and refuses what cannot be.
Options resolved(Options o, Part part) {
  using Words = std::vector<std::string>;
  using Numbers = std::vector<std::int64_t>;
  const bool emulated = part == Part::kEmulated;
  if (emulated && o.threads > 1)
    refuse("emulated ranks have one thread each", "leave --threads out, or add --overlap");
  if (emulated && o.strategy != "ring" && o.strategy != "allgather")
    refuse(fmt::format("{} is not emulated: its ranks compute other heads", o.strategy),
           "choose --strategy ring or allgather, or --overlap");
  const bool on_gpu = part == Part::kDevice;
  set_default<std::int64_t>(o.q_heads, on_gpu ? 64 : emulated ? 2 : 8);
  set_default<std::int64_t>(o.kv_heads,
                            emulated ? 1 : std::min<std::int64_t>(on_gpu ? 8 : 4, o.q_heads));
  set_default<std::int64_t>(o.head_dim, on_gpu ? 128 : 64);
  set_default(o.threads, 1);
  set_default(o.layouts, part == Part::kOverlap ? Words{"zigzag"} : Words{"zigzag", "balanced"});
  if (o.q_heads % o.kv_heads != 0)
    refuse(fmt::format("{} query heads are not shared evenly by {} key/value heads", o.q_heads,
                       o.kv_heads),
           "choose --kv-heads that divides --q-heads");
  for (const std::string& documents : o.documents) document_lengths(documents, 1, o.seed);
  if (part == Part::kMasks || on_gpu) {
    set_default(o.tokens, on_gpu ? Numbers{4096, 8192, 16384, 32768} : Numbers{8192});
    set_default(o.repeat, on_gpu ? 10 : 5);
    set_default(o.kernels, Words{"auto"});
    set_default(o.documents, Words{"lognormal:900:1.2"});
    set_default(o.masks, mask_names());
  } else if (emulated) {
    // A run over all of the program's parts ends within a minute or two.
    set_default(o.tokens, Numbers{o.ranks > 0 ? 131072 : 32768});
    set_default(o.ranks, 16);
    set_default(o.repeat, 3);
    set_default(o.documents, Words{"lognormal:3000:1.2", "lognormal:900:1.9", "pareto:1.1:500",
                                   "uniform:40:400", "bimodal:0.05:32768:200:3000"});
    if (o.tokens.size() > 1) refuse("ranks are emulated at one length", "give --tokens one number");
  } else {
    set_default(o.tokens, Numbers{512, 2048, 8192});
    set_default(o.repeat, 20);
    set_default(o.documents, Words{"one"});
    if (o.ranks % o.ulysses != 0)
      refuse(fmt::format("{} ranks do not form Ulysses groups of {}", o.ranks, o.ulysses),
             "choose --ulysses that divides the ranks");
    if (o.strategy == "ulysses" && o.ulysses != o.ranks)
      refuse("with --strategy ulysses all ranks form one group",
             fmt::format("add --ulysses {}, or choose hybrid", o.ranks));
    if ((o.strategy == "ring" || o.strategy == "allgather") && o.ulysses != 1)
      refuse("Ulysses groups belong to --strategy ulysses and hybrid", "leave --ulysses out");
    if (o.q_heads % o.ulysses != 0)
      refuse(fmt::format("{} query heads are not shared evenly by {} Ulysses ranks", o.q_heads,
                         o.ulysses),
             "choose --ulysses that divides --q-heads");
  }
  return o;
}

int print_error(const Error& e) {
  fmt::print(stderr, "bench_attention: {}\n", e.what());
  return static_cast<int>(e.code());
}

int run_under_mpi(int& argc, char**& argv, Options o) {
  MpiSession session(&argc, &argv, {.progress_thread = !o.no_progress});
  Communicator& world = session.world();
  try {
    if (o.ranks != 0 && o.ranks != world.size())
      refuse(fmt::format("--ranks {} under mpirun with {}", o.ranks, world.size()),
             "leave --ranks out");
    o.ranks = world.size();
    run_overlap(resolved(std::move(o), Part::kOverlap), world);
    return 0;
  } catch (const Error& e) {
    // Errors of usage are every rank's: one prints them, all end. Others may be this rank's alone.
    const bool everyone = e.code() == ExitCode::kUsage;
    if (everyone && world.rank() != 0) return static_cast<int>(e.code());
    const int code = print_error(e);
    if (!everyone) world.abort(e.code(), "");
    return code;
  }
}

int run(int argc, char** argv) {
  Options o;
  CLI::App app("Speed of attention: by mask, on a GPU, on emulated ranks, behind transfers");
  add_options(app, o);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(ExitCode::kUsage);
  }
  try {
    if (o.device == "cuda" && (o.overlap || o.ranks != 0))
      refuse("--device cuda measures one GPU alone", "leave --ranks and --overlap out");
    if (o.mpi) return run_under_mpi(argc, argv, std::move(o));
    if (o.overlap) {
      set_default(o.ranks, 2);
      const Options threads = resolved(std::move(o), Part::kOverlap);
      run_local_ranks(threads.ranks, [&](Communicator& world) { run_overlap(threads, world); });
      return 0;
    }
    if (o.device == "cuda") {
      run_on_device(resolved(o, Part::kDevice));
      return 0;
    }
    const bool everything = o.ranks == 0 && o.masks.empty() && o.tokens.empty();
    if (o.ranks == 0) run_masks(resolved(o, Part::kMasks));
    if (everything && !o.json) fmt::print("\n");
    if (o.ranks != 0 || everything) run_emulated(resolved(o, Part::kEmulated));
    return 0;
  } catch (const Error& e) {
    return print_error(e);
  }
}

}  // namespace
}  // namespace farspan::bench

int main(int argc, char** argv) { return farspan::bench::run(argc, argv); }
