// The HDF5 wrapper by itself.
#include "io/hdf5_file.h"

#include <hdf5.h>

#include <fstream>
#include <numeric>

#include "tests/io/checkpoint_fixture.h"

namespace farspan::io_test {
namespace {

using io::Hdf5Reader;
using io::Hdf5Writer;
using ::testing::HasSubstr;

TEST(Hdf5File, PartsAreConcatenatedAndAnyRangeReads) {
  const TempFolder folder;
  const auto path = folder.path() / "a.h5";
  std::vector<float> a(300000), b(1), c(250001);
  std::iota(a.begin(), a.end(), 0.0f);
  b[0] = 300000;
  std::iota(c.begin(), c.end(), 300001.0f);
  {
    Hdf5Writer out(path, 4 * 550002);
    const Tensor parts[] = {host_tensor(a.data(), {300000}), host_tensor(b.data(), {1}),
                            host_tensor(c.data(), {250001})};
    out.write("tensors/x/y", parts);
    EXPECT_EQ(out.close(), static_cast<std::int64_t>(std::filesystem::file_size(path)));
  }
  // Fletcher32 and chunk padding cost little.
  EXPECT_LT(std::filesystem::file_size(path), 4u * 550002 + 8192);
  const Hdf5Reader in(path);
  for (const std::int64_t begin : {0, 299999, 262144, 550001}) {
    const std::int64_t count = std::min<std::int64_t>(5000, 550002 - begin);
    std::vector<float> got(static_cast<std::size_t>(count));
    in.read("tensors/x/y", begin, host_tensor(got.data(), {count}));
    for (std::int64_t i = 0; i < count; ++i)
      ASSERT_EQ(got[static_cast<std::size_t>(i)], static_cast<float>(begin + i));
  }
  std::vector<float> got(2);
  EXPECT_THROW(in.read("tensors/x/y", 550001, host_tensor(got.data(), {2})), Error);
  EXPECT_THROW(in.read("tensors/x", 0, host_tensor(got.data(), {2})), Error);
  EXPECT_THROW(in.read("nothing", 0, host_tensor(got.data(), {2})), Error);
  std::vector<std::int32_t> ints(2);
  EXPECT_THROW(in.read("tensors/x/y", 0, host_tensor(ints.data(), {2})), Error);
}

TEST(Hdf5File, EveryDatasetIsChunkedWithFletcher32AndPlainHdf5ReadsIt) {
  const TempFolder folder;
  const auto path = folder.path() / "a.h5";
  std::vector<float> x = {1, 2, 3};
  {
    Hdf5Writer out(path, 12);
    const Tensor part = host_tensor(x.data(), {3});
    out.write("t", {&part, 1});
    out.close();
  }
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);  // HDF5's own driver
  const hid_t dataset = H5Dopen2(file, "t", H5P_DEFAULT);
  const hid_t layout = H5Dget_create_plist(dataset);
  EXPECT_EQ(H5Pget_layout(layout), H5D_CHUNKED);
  ASSERT_EQ(H5Pget_nfilters(layout), 1);
  unsigned flags = 0, config = 0;
  std::size_t count = 0;
  EXPECT_EQ(H5Pget_filter2(layout, 0, &flags, &count, nullptr, 0, nullptr, &config),
            H5Z_FILTER_FLETCHER32);
  float got[3] = {};
  EXPECT_GE(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, got), 0);
  EXPECT_EQ(got[2], 3.0f);
  H5Pclose(layout);
  H5Dclose(dataset);
  H5Fclose(file);
}

TEST(Hdf5File, NothingIsPrinted) {
  const TempFolder folder;
  std::ofstream(folder.path() / "no.h5") << "this is no HDF5 file";
  ::testing::internal::CaptureStderr();
  const Error e = error_of([&] { Hdf5Reader in(folder.path() / "no.h5"); });
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(e.code(), ExitCode::kBadData);
  EXPECT_THAT(e.text().where, HasSubstr("no.h5"));
}

TEST(Hdf5File, AnExistingFileIsNotOverwritten) {
  const TempFolder folder;
  std::ofstream(folder.path() / "a.h5") << "mine";
  EXPECT_EQ(error_of([&] { Hdf5Writer out(folder.path() / "a.h5", 1); }).code(), ExitCode::kUsage);
  EXPECT_EQ(std::filesystem::file_size(folder.path() / "a.h5"), 4u);
}

TEST(Hdf5File, GivenUpWithoutClose) {
  const TempFolder folder;
  std::vector<float> x(1000, 1.0f);
  {
    Hdf5Writer out(folder.path() / "a.h5", 4000);
    const Tensor part = host_tensor(x.data(), {1000});
    out.write("t", {&part, 1});
  }
  EXPECT_EQ(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL), 0);
}

}  // namespace
}  // namespace farspan::io_test
