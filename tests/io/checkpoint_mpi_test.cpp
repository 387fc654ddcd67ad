// The writer with ranks as processes: its communicator works on another thread while the ranks'
// own goes on. Run by mpirun; the same path on all ranks comes from rank 0.
#include <sys/resource.h>

#include <csignal>
#include <fstream>

#include "comm/agree.h"
#include "tests/io/checkpoint_fixture.h"

namespace farspan::io_test {
namespace {

Communicator* world = nullptr;  // set by main, before any test

// A folder that rank 0 makes and all ranks know.
class SharedFolder {
 public:
  SharedFolder() {
    std::string path(512, '\0');
    if (world->rank() == 0) {
      own_.emplace();
      path.replace(0, own_->path().string().size(), own_->path().string());
    }
    Stream stream;
    world
        ->broadcast(host_tensor(reinterpret_cast<std::uint8_t*>(path.data()),
                                {static_cast<std::int64_t>(path.size())}),
                    0, stream)
        .wait();
    path_ = path.c_str();
  }
  ~SharedFolder() { world->barrier(); }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::optional<TempFolder> own_;
  std::filesystem::path path_;
};

TEST(CheckpointMpi, SavesWhileTheWorldCommunicates) {
  const SharedFolder folder;
  const auto tensors = model_tensors(200);
  Log log = quiet_log();
  {
    CheckpointWriter writer(*world, {.folder = folder.path(), .keep_last = 2}, log);
    for (const std::int64_t step : {1, 2, 3}) {
      const RankShare share =
          share_of(tensors, step, world->rank(), world->size(), Split::kIrregular);
      writer.save(step, share.pieces, state_at(step));
      Stream stream;
      for (std::int64_t i = 0; i < 50; ++i) {  // steps of training, as far as the wire can tell
        std::int64_t sum = i;
        world->all_reduce(host_tensor(&sum, {1}), ReduceOp::kSum, stream).wait();
        ASSERT_EQ(sum, i * world->size());
      }
      ASSERT_EQ(writer.wait()->step, step);
    }
  }
  EXPECT_THAT(names_in(folder.path()), ::testing::ElementsAre("step_00000002", "step_00000003"));
  EXPECT_TRUE(holds_step(folder.path() / "step_00000003", 3, tensors));
}

TEST(CheckpointMpi, OneRanksFullDiskFailsTheSaveOnAll) {
  const SharedFolder folder;
  const auto tensors = model_tensors(200);
  Log log = quiet_log();
  CheckpointWriter writer(*world, {.folder = folder.path()}, log);
  const RankShare share = share_of(tensors, 1, world->rank(), world->size(), Split::kEven);
  const bool unlucky = world->rank() == world->size() - 1;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{.rlim_cur = 20000, .rlim_max = limit.rlim_max};
  if (unlucky) {
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  }
  writer.save(1, share.pieces, state_at(1));
  std::int64_t reports = 0;
  try {
    writer.wait();
    ADD_FAILURE() << "saved on a full disk";
  } catch (const SharedError& e) {
    EXPECT_EQ(e.code(), ExitCode::kExhausted);
    EXPECT_EQ(e.rank(), world->size() - 1);
    EXPECT_EQ(e.report(), unlucky);
    reports = e.report() ? 1 : 0;
  }
  if (unlucky) {
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  Stream stream;
  world->all_reduce(host_tensor(&reports, {1}), ReduceOp::kSum, stream).wait();
  EXPECT_EQ(reports, 1);
  EXPECT_THAT(names_in(folder.path()), ::testing::IsEmpty());
  world->barrier();
  writer.save(1, share.pieces, state_at(1));  // the same writer, with space again
  ASSERT_EQ(writer.wait()->step, 1);
  EXPECT_TRUE(holds_step(folder.path() / "step_00000001", 1, tensors));
}

}  // namespace
}  // namespace farspan::io_test

int main(int argc, char** argv) {
  farspan::MpiSession mpi(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  farspan::io_test::world = &mpi.world();
  return RUN_ALL_TESTS();
}
