// What layers keep for the backward pass, waiting in host memory: of each kind of tensor two are on
// the device, whatever the number of layers. Copies run on a queue of their own, beside the layer
// that comes next; the host waits for none of them.
//
//   HostStash stash(device, host_bytes);
//   stash.begin(num_layers, arena, stream);            // a pass
//   Tensor x = stash.take("input", i, dtype, shape);   // forward, layer i = 0, 1, ...
//   /* kernels write x */ stash.put("input", i);       // starts the copy to the host
//   stash.arrive(i); /* kernels read x */              // backward, i = num_layers - 1, ...
//   stash.release(i);                                  // starts the copies of layer i - 2 to here
//   stash.end();
//
// A tensor lies at the same address in both directions: layer i's where those of layers i - 2 and
// i + 2 lie. The last two layers' never leave the device.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"

namespace farspan {

class HostStash {
 public:
  // Takes `host_bytes` of the device's fast host memory. Throws Error(kExhausted).
  HostStash(Device& device, std::size_t host_bytes);

  // Device tensors are taken from `arena`, which must not be rewound below them before end().
  // Kernels run on `compute`.
  void begin(int num_layers, Arena& arena, Stream& compute);
  // Layer i's tensor of this kind, for kernels to write; the kernels that follow start when the
  // tensor of layer i - 2 has left. Layers ascend by one; all have one shape (CHECK).
  Tensor take(std::string_view name, int layer, DType dtype, Shape shape);
  // Kernels given to the compute queue so far have written it.
  void put(std::string_view name, int layer);
  // Kernels that follow start when all that layer i has put is back.
  void arrive(int layer);
  // Kernels given to the compute queue so far are the last to read what layer i has put.
  void release(int layer);
  // Kernels that follow start when all copies are done.
  void end();

  const Arena& host() const { return host_; }

 private:
  static constexpr int kBuffers = 2;
  struct Buffer {
    Tensor tensor;
    int layer = -1;                 // whose it holds, or will once the copy to here is done
    bool busy = false;              // a copy from or to here was started in this pass
    std::unique_ptr<Event> used;    // by kernels
    std::unique_ptr<Event> copied;  // from or to here
  };
  struct Lane {
    std::array<Buffer, kBuffers> buffers;
    std::vector<Tensor> host;  // of layer i
    int next = 0;              // layer to take
  };
  static std::size_t slot(int layer) { return static_cast<std::size_t>(layer % kBuffers); }
  Buffer& buffer(std::string_view name, int layer);
  // Copies after the kernels given so far.
  void copy(Buffer& at, std::byte* dst, const std::byte* src);

  Device& device_;
  Arena host_;
  std::optional<Arena::Scope> host_scope_;
  std::unique_ptr<Stream> transfer_;
  std::unique_ptr<Event> all_copied_;
  std::map<std::string, Lane, std::less<>> lanes_;
  int num_layers_ = 0;
  Arena* arena_ = nullptr;  // of the pass at hand
  Stream* compute_ = nullptr;
};

}  // namespace farspan
