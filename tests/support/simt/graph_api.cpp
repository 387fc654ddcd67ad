#include <memory>

#include "support/simt/capture.h"
#include "support/simt/runtime.h"
#include "support/simt/runtime_api.h"

using farspan::simt::GraphNodes;
using farspan::simt::run_graph;
using farspan::simt::runtime;

struct CUgraph_st {
  std::shared_ptr<const GraphNodes> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const GraphNodes> nodes;
};

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return runtime().begin_capture(stream) ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  auto nodes = std::make_shared<GraphNodes>();
  const bool whole = runtime().end_capture(stream, *nodes);
  *graph = whole ? new CUgraph_st{std::move(nodes)} : nullptr;
  return whole ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status =
      runtime().captures(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes != nullptr) return cudaErrorNotSupported;
  *count = graph->nodes->size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* runnable, cudaGraph_t graph, unsigned long long) {
  *runnable = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable) {
  delete runnable;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t stream) {
  runtime().enqueue(
      stream, {.run = [nodes = runnable->nodes] { run_graph(*nodes, runtime().disorder()); }});
  return cudaSuccess;
}
