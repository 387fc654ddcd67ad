#include "core/trace.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

namespace farspan {
namespace {

TEST(Trace, SumsSectionsByNameUntilTaken) {
  using namespace std::chrono_literals;
  Trace trace;
  {
    const auto outer = trace.section("step");
    for (int i = 0; i < 3; ++i) {
      const auto inner = trace.section("attention");
      std::this_thread::sleep_for(2ms);
    }
  }
  trace.add("attention", 1.0);
  const auto sums = trace.take();
  ASSERT_EQ(sums.size(), 2u);
  EXPECT_EQ(sums.at("attention").calls, 4);
  EXPECT_GE(sums.at("attention").seconds, 1.006);
  EXPECT_LT(sums.at("attention").seconds, 2.0);
  EXPECT_EQ(sums.at("step").calls, 1);
  EXPECT_GE(sums.at("step").seconds, 0.006) << "an outer section contains its inner ones";
  EXPECT_TRUE(trace.sums().empty()) << "taken, so begun anew";
}

// Notes what it is told; the device takes 1 s for each section.
class NotingSink final : public TraceSink {
 public:
  explicit NotingSink(std::vector<std::string>& notes) : notes_(notes) {}
  void begin(std::string_view name, int index) override {
    open_.emplace_back(name);
    notes_.push_back("begin " + section_label(name, index));
  }
  void end() override {
    notes_.push_back("end");
    ended_.push_back(open_.back());
    open_.pop_back();
  }
  void collect(const Take& take) override {
    for (const std::string& name : ended_) take(name, 1.0);
    ended_.clear();
  }

 private:
  std::vector<std::string>& notes_;
  std::vector<std::string> open_, ended_;
};

TEST(Trace, TheSinkHearsOfSectionsAndAddsDeviceTime) {
  std::vector<std::string> notes;
  Trace trace;
  trace.collect();  // without a sink: nothing to collect
  trace.attach(std::make_unique<NotingSink>(notes));
  {
    const auto outer = trace.section("forward");
    for (int layer = 0; layer < 2; ++layer)
      const auto inner = trace.section("block.attention", layer);
  }
  EXPECT_EQ(notes, (std::vector<std::string>{"begin forward", "begin block.0.attention", "end",
                                             "begin block.1.attention", "end", "end"}));
  EXPECT_EQ(trace.sums().at("forward").device_seconds, 0.0) << "not collected yet";
  trace.collect();
  trace.collect();  // handed on once
  EXPECT_EQ(trace.sums().at("forward").device_seconds, 1.0);
  EXPECT_EQ(trace.sums().at("block.attention").device_seconds, 2.0) << "modules share a sum";
  EXPECT_EQ(trace.sums().at("block.attention").calls, 2);
}

TEST(Trace, LabelsNameTheModule) {
  EXPECT_EQ(section_label("block.attention", 3), "block.3.attention");
  EXPECT_EQ(section_label("block.mlp.backward", 11), "block.11.mlp.backward");
  EXPECT_EQ(section_label("loss_head", -1), "loss_head");
  EXPECT_EQ(section_label("expert", 2), "expert.2");
}

}  // namespace
}  // namespace farspan
