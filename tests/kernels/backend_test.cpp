// The factory: what it makes, and how it refuses.
#include "kernels/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "kernels/cpu/isa.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

ErrorText usage_error(const BackendOptions& options) {
  try {
    make_backend(options);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    return e.text();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(Factory, DescribesTheCpu) {
  const auto backend = make_backend({.num_threads = 2});
  EXPECT_EQ(backend->device().id(), (DeviceId{DeviceKind::kCpu, 0}));
  EXPECT_THAT(backend->description(), HasSubstr(std::string(name_of(best_cpu_isa()))));
  EXPECT_THAT(backend->description(), HasSubstr("oneDNN 2."));
  EXPECT_THAT(backend->description(), HasSubstr("2 threads"));
  EXPECT_THAT(make_backend({.cpu_isa = CpuIsa::kPortable})->description(),
              HasSubstr("portable attention, oneDNN"));
  EXPECT_THAT(make_backend({.cpu_isa = CpuIsa::kPortable})->description(),
              HasSubstr("bf16 widened to f32"));
}

TEST(Factory, RefusesWhatThisProcessorLacks) {
  EXPECT_THAT(usage_error({.num_threads = 0}).what, HasSubstr("0 CPU threads"));
  if (cpu_supports(CpuIsa::kAmx)) GTEST_SKIP() << "this processor has every instruction set";
  EXPECT_THAT(usage_error({.cpu_isa = CpuIsa::kAmx}).what, HasSubstr("no amx"));
}

TEST(Factory, RefusesCudaWhereItWasNotBuilt) {
  const auto kinds = built_backends();
  if (std::find(kinds.begin(), kinds.end(), DeviceKind::kCuda) != kinds.end())
    GTEST_SKIP() << "this build has a CUDA backend";
  const ErrorText text = usage_error({.kind = DeviceKind::kCuda});
  EXPECT_THAT(text.what, HasSubstr("this build has no CUDA backend"));
  EXPECT_THAT(text.fix, HasSubstr("cmake --preset cuda"));
}

TEST(Factory, ListsWhatIsBuilt) {
  EXPECT_THAT(built_backends(), ::testing::IsSupersetOf({DeviceKind::kCpu, DeviceKind::kDry}));
}

}  // namespace
}  // namespace farspan
