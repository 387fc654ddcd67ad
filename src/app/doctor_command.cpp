// farspan doctor: what this build and this machine can do, and what to fix.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/build_info.h"
#include "app/command.h"
#include "app/machine.h"
#include "app/ranks.h"
#include "app/self_check.h"
#include "comm/nccl.h"
#include "kernels/backend.h"

namespace farspan::app {
namespace {

struct Fact {
  std::string name;
  std::string value;
};

struct Section {
  std::string name;
  std::vector<Fact> facts;
};

struct Finding {
  std::string what;
  std::string fix;
  bool broken = false;  // Farspan cannot run; otherwise advice
};

class Doctor {
 public:
  void examine() {
    examine_build();
    examine_machine();
    examine_kernels();
    examine_mpi();
    examine_programs();
  }
  void print_text() const;
  void print_json() const;
  bool broken() const {
    return std::any_of(findings_.begin(), findings_.end(),
                       [](const Finding& finding) { return finding.broken; });
  }

 private:
  void examine_build();
  void examine_machine();
  void examine_kernels();
  void examine_cuda();
  void examine_mpi();
  void examine_programs();
  void section(std::string name) { sections_.push_back({std::move(name), {}}); }
  void fact(std::string name, std::string value) {
    sections_.back().facts.push_back({std::move(name), std::move(value)});
  }
  void advise(std::string what, std::string fix) {
    findings_.push_back({std::move(what), std::move(fix)});
  }
  void report_broken(std::string what, std::string fix) {
    findings_.push_back({std::move(what), std::move(fix), true});
  }

  std::vector<Section> sections_;
  std::vector<Finding> findings_;
  int cores_ = 1;
};

std::string gib(std::int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

// The first line a program prints; empty when it cannot be run.
std::string first_line_of(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>/dev/null </dev/null").c_str(), "r");
  if (pipe == nullptr) return "";
  std::array<char, 256> line{};
  const bool got = std::fgets(line.data(), line.size(), pipe) != nullptr;
  const int status = pclose(pipe);
  if (!got || !WIFEXITED(status) || WEXITSTATUS(status) == 127) return "";
  std::string out(line.data());
  while (!out.empty() && (out.back() == '\n' || out.back() == '\r')) out.pop_back();
  return out;
}

void Doctor::examine_build() {
  const BuildInfo info = build_info();
  section("build");
  fact("version", version_text());
  fact("compiler", info.compiler + ", " + info.type);
  std::string backends;
  for (DeviceKind kind : built_backends()) {
    const char* name = kind == DeviceKind::kCpu    ? "cpu"
                       : kind == DeviceKind::kCuda ? "cuda"
                                                   : "dry";
    backends += (backends.empty() ? "" : ", ") + std::string(name);
  }
  fact("backends", backends);
  for (const auto& [name, version] : info.libraries) fact(name, version);
}

void Doctor::examine_machine() {
  const Machine machine = read_machine();
  cores_ = usable_cores(machine.cores_bound, machine.cores_quota);
  section("machine");
  fact("processor", machine.cpu_model.empty() ? "unknown" : machine.cpu_model);
  fact("instructions", machine.isa.empty() ? "baseline x86-64" : join(machine.isa));
  fact("cores", fmt::format("{} usable; {} online, {} in this process's mask, container limit {}",
                            cores_, machine.cores_online, machine.cores_bound,
                            machine.cores_quota > 0 ? fmt::format("{:g}", machine.cores_quota)
                                                    : std::string("none")));
  const std::string threads = environment_variable("OMP_NUM_THREADS");
  fact("OMP_NUM_THREADS", threads.empty() ? "not set: cores are shared among ranks" : threads);
  fact("memory", fmt::format("{} free of {}, container limit {}", gib(machine.memory_free),
                             gib(machine.memory_total),
                             machine.memory_quota > 0 ? gib(machine.memory_quota) : "none"));
  std::error_code error;
  const auto space = std::filesystem::space(".", error);
  if (error)
    advise("the free space of this folder cannot be read: " + error.message(), "check the disk");
  else
    fact("disk", fmt::format("{} free in {}", gib(static_cast<std::int64_t>(space.available)),
                             std::filesystem::current_path(error).string()));
  constexpr std::int64_t kLowDisk = std::int64_t{2} << 30;
  if (!error && static_cast<std::int64_t>(space.available) < kLowDisk)
    advise("less than 2 GiB of disk is free here: checkpoints may not fit",
           "free space, or set output_dir to another disk");
  if (threads.empty()) return;
  int requested = 0;
  try {
    requested = std::stoi(threads);
  } catch (const std::exception&) {
    advise(fmt::format("OMP_NUM_THREADS is '{}', which is no number", threads),
           "unset OMP_NUM_THREADS");
  }
  if (requested > cores_)
    advise(fmt::format("OMP_NUM_THREADS is {}, above the {} usable cores", requested, cores_),
           "unset OMP_NUM_THREADS: cores are then shared among ranks");
}

void Doctor::examine_kernels() {
  section("kernels");
  try {
    const auto backend = make_backend({.kind = DeviceKind::kCpu, .num_threads = cores_});
    const std::string description = backend->description();
    fact("cpu", description.substr(description.starts_with("cpu: ") ? 5 : 0));
    const SelfCheck check = self_check(*backend);
    fact("matmul 1024", fmt::format("f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s", check.f32_gflops,
                                    check.bf16_gflops));
    fact("self-check", fmt::format("{}: error of matmul {:.1e}, of attention {:.1e} (limit {:.0e})",
                                   check.passed() ? "passed" : "FAILED", check.matmul_error,
                                   check.attention_error, SelfCheck::kTolerance));
    if (!check.passed())
      report_broken("the CPU kernels compute wrong results on this processor",
                    "please report this output: it is a bug in Farspan or in oneDNN");
    if (check.bf16_gflops < 0.8 * check.f32_gflops)
      advise("bf16 matrix products are slower than f32 here",
             "train with train.precision=fp32 where memory allows");
  } catch (const Error& error) {
    report_broken("the CPU backend does not start: " + error.text().what, error.text().fix);
  }
  examine_cuda();
}

void Doctor::examine_cuda() {
  const std::vector<DeviceKind> built = built_backends();
  if (std::find(built.begin(), built.end(), DeviceKind::kCuda) == built.end()) {
    fact("cuda", "not in this build (cmake --preset cuda builds it)");
    return;
  }
  for (const DeviceFact& known : device_facts(DeviceKind::kCuda)) fact(known.name, known.value);
  fact("nccl", nccl_is_built() ? nccl_version() : "not in this build");
  try {
    fact("cuda", make_backend({.kind = DeviceKind::kCuda})->description());
  } catch (const Error& error) {
    fact("cuda", "built, not usable: see below");
    advise("no GPU can be used: " + error.text().what,
           error.text().fix.empty() ? "check the driver with nvidia-smi, or train with device=cpu"
                                    : error.text().fix);
  }
}

void Doctor::examine_mpi() {
  section("mpi");
  const std::string version = first_line_of("mpirun --version");
  fact("mpirun", version.empty() ? "not found" : version);
  if (version.empty()) {
    advise("mpirun is not on the PATH",
           "apt-get install openmpi-bin; until then use --local-ranks N");
    return;
  }
  const bool root = geteuid() == 0;
  const bool root_allowed = environment_variable("OMPI_ALLOW_RUN_AS_ROOT") == "1" &&
                            environment_variable("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == "1";
  const std::string oversubscribe = environment_variable("OMPI_MCA_rmaps_base_oversubscribe");
  const bool many_allowed = oversubscribe == "1" || oversubscribe == "true";
  fact("user", !root          ? "not root"
               : root_allowed ? "root, and mpirun may run as root"
                              : "root, which mpirun refuses");
  fact("ranks above cores",
       many_allowed ? "allowed" : fmt::format("refused above {} ranks", cores_));
  const std::string exports =
      "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
      "OMPI_MCA_rmaps_base_oversubscribe=1   (launch/*.sh do this themselves)";
  if (root && !root_allowed)
    advise("mpirun refuses to run as root", exports);
  else if (!many_allowed)
    advise(fmt::format("mpirun refuses more ranks than it counts slots (here about {})", cores_),
           "for such runs: export OMPI_MCA_rmaps_base_oversubscribe=1   (launch/*.sh do this)");
}

void Doctor::examine_programs() {
  section("programs");
  const std::string gnuplot = first_line_of("gnuplot --version");
  fact("gnuplot", gnuplot.empty() ? "not found" : gnuplot);
  if (gnuplot.empty())
    advise("gnuplot is not on the PATH: no pictures of runs", "apt-get install gnuplot-nox");
}

void Doctor::print_text() const {
  for (const Section& part : sections_) {
    fmt::print("{}\n", part.name);
    for (const Fact& entry : part.facts) fmt::print("  {:<18}{}\n", entry.name, entry.value);
  }
  if (findings_.empty()) {
    fmt::print("nothing to fix\n");
    return;
  }
  fmt::print("to fix\n");
  for (const Finding& finding : findings_)
    fmt::print("  {} {}\n      fix: {}\n", finding.broken ? "broken:" : "-", finding.what,
               finding.fix);
}

void Doctor::print_json() const {
  using Json = nlohmann::ordered_json;
  Json out;
  out["ok"] = !broken();
  for (const Section& part : sections_)
    for (const Fact& entry : part.facts) out[part.name][entry.name] = entry.value;
  out["findings"] = Json::array();
  for (const Finding& finding : findings_)
    out["findings"].push_back(
        {{"what", finding.what}, {"fix", finding.fix}, {"broken", finding.broken}});
  fmt::print("{}\n", out.dump(2, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

void add_doctor_command(CLI::App& app, Session& session) {
  auto json = std::make_shared<bool>(false);
  CLI::App* cmd =
      app.add_subcommand("doctor", "what this build and this machine can do, and what to fix");
  cmd->add_flag("--json", *json, "print one JSON object");
  cmd->callback([json, &session] {
    Doctor doctor;
    doctor.examine();
    *json ? doctor.print_json() : doctor.print_text();
    session.exit_code = static_cast<int>(doctor.broken() ? ExitCode::kInternal : ExitCode::kOk);
  });
}

}  // namespace farspan::app
