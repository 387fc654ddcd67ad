// Stands in for NVTX, for g++: no profiler looks.
#pragma once

inline int nvtxRangePushA(const char*) { return 0; }
inline int nvtxRangePop() { return 0; }
