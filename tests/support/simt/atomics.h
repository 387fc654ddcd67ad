// Atomics: plain operations, as one thread of the device runs at a time. Only the types that CUDA
// has, so that what compiles here compiles there.
#pragma once

#define FARSPAN_SIMT_ATOMIC(name, T, expression) \
  inline T name(T* address, T value) {           \
    const T old = *address;                      \
    *address = (expression);                     \
    return old;                                  \
  }
#define FARSPAN_SIMT_ATOMICS(T)                                \
  FARSPAN_SIMT_ATOMIC(atomicMin, T, value < old ? value : old) \
  FARSPAN_SIMT_ATOMIC(atomicMax, T, old < value ? value : old) \
  FARSPAN_SIMT_ATOMIC(atomicAnd, T, old& value)                \
  FARSPAN_SIMT_ATOMIC(atomicOr, T, old | value)                \
  FARSPAN_SIMT_ATOMIC(atomicXor, T, old ^ value)               \
  FARSPAN_SIMT_ATOMIC(atomicExch, T, value)                    \
  inline T atomicCAS(T* address, T compare, T value) {         \
    const T old = *address;                                    \
    if (old == compare) *address = value;                      \
    return old;                                                \
  }

FARSPAN_SIMT_ATOMICS(int)
FARSPAN_SIMT_ATOMICS(unsigned)
FARSPAN_SIMT_ATOMICS(unsigned long long)
FARSPAN_SIMT_ATOMIC(atomicExch, float, value)
FARSPAN_SIMT_ATOMIC(atomicAdd, int,
                    static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
FARSPAN_SIMT_ATOMIC(atomicAdd, unsigned, old + value)
FARSPAN_SIMT_ATOMIC(atomicAdd, unsigned long long, old + value)
FARSPAN_SIMT_ATOMIC(atomicAdd, float, old + value)
FARSPAN_SIMT_ATOMIC(atomicAdd, double, old + value)
FARSPAN_SIMT_ATOMIC(atomicSub, int,
                    static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
FARSPAN_SIMT_ATOMIC(atomicSub, unsigned, old - value)
FARSPAN_SIMT_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
FARSPAN_SIMT_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef FARSPAN_SIMT_ATOMICS
#undef FARSPAN_SIMT_ATOMIC
