// An error that several ranks throw, of which one is to be printed.
#pragma once

#include "core/error.h"

namespace farspan {

class SharedError : public Error {
 public:
  SharedError(const Error& error, int rank, bool report)
      : Error(error.code(), error.text()), rank_(rank), report_(report) {}
  int rank() const { return rank_; }       // the rank whose error this is
  bool report() const { return report_; }  // print it here

 private:
  int rank_;
  bool report_;
};

}  // namespace farspan
