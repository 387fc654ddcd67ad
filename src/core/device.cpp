#include "core/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace farspan {

Buffer::Buffer(std::byte* data, std::size_t bytes, DeviceId device,
               std::function<void(std::byte*, std::size_t)> release)
    : data_(data), bytes_(bytes), device_(device), release_(std::move(release)) {}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

Buffer::~Buffer() { reset(); }

void Buffer::reset() {
  if (data_ != nullptr && release_) release_(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

Tensor Buffer::tensor(DType dtype, Shape shape) const {
  const std::size_t needed = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  FARSPAN_CHECK(needed <= bytes_, "{} bytes asked of a buffer of {}", needed, bytes_);
  return {.data = data_, .dtype = dtype, .shape = shape, .device = device_};
}

void Stream::begin_recording() { FARSPAN_CHECK(false, "this queue cannot record"); }

std::unique_ptr<Graph> Stream::end_recording() {
  FARSPAN_CHECK(false, "this queue cannot record");
  return nullptr;
}

namespace {

constexpr std::size_t kAlignment = 4096;

class CpuDevice final : public Device {
 public:
  DeviceId id() const override { return {DeviceKind::kCpu, 0}; }

  Buffer allocate(std::size_t bytes) override {
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded == 0) return {};
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (data == nullptr)
      throw Error(ExitCode::kExhausted,
                  {.what = fmt::format("cannot allocate {:.2f} GiB of host memory",
                                       static_cast<double>(bytes) / (1 << 30)),
                   .fix = "shorten train.sequence_length, raise parallel.context, or set "
                          "train.recompute: full+attention"});
    return Buffer(data, bytes, id(), [](std::byte* p, std::size_t) { std::free(p); });
  }
  Buffer allocate_host(std::size_t bytes) override { return allocate(bytes); }
  void copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream&) override {
    if (bytes != 0) std::memcpy(dst, src, bytes);
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<Stream>(); }
};

// The part of a dry buffer's addresses that is reserved. Nobody reads them; ThreadSanitizer leaves
// a program less address space than one dry run asks for.
std::size_t reserved(std::size_t bytes) {
#ifdef __SANITIZE_THREAD__
  return std::min(bytes, std::size_t{16} << 30);
#else
  return bytes;
#endif
}

class DryDevice final : public Device {
 public:
  DeviceId id() const override { return {DeviceKind::kDry, 0}; }

  Buffer allocate(std::size_t bytes) override {
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded == 0) return {};
    void* data = mmap(nullptr, reserved(rounded), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
      throw Error(ExitCode::kExhausted,
                  {.what = fmt::format("cannot reserve {} bytes of address space for a dry run: {}",
                                       rounded, std::strerror(errno)),
                   .fix = "raise the address-space limit (ulimit -v unlimited)"});
    return Buffer(static_cast<std::byte*>(data), rounded, id(),
                  [](std::byte* p, std::size_t n) { munmap(p, reserved(n)); });
  }
  Buffer allocate_host(std::size_t bytes) override { return allocate(bytes); }
  void copy(std::byte*, const std::byte*, std::size_t, Stream&) override {}
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<Stream>(); }
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }
std::unique_ptr<Device> make_dry_device() { return std::make_unique<DryDevice>(); }

}  // namespace farspan
