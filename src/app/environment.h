// What the process inherits from whoever started it. Only src/app reads the environment.
#pragma once

#include <string>

namespace farspan::app {

// True when this process was started by mpirun (or srun with PMIx).
bool started_by_mpi();

// Processes that mpirun started; 0 where it did not, or where its kind does not tell.
int num_started_processes();

// True in the one process of a job that may print what every process knows before MPI runs (a wrong
// option); also true where there is no MPI.
bool is_first_process();

// A variable of the environment; "" where it is not set. Only src/app reads any.
std::string environment_variable(const char* name);

}  // namespace farspan::app
