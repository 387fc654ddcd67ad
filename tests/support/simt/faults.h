// Faults as errors: a kernel's access outside memory, an unaligned vector, a division by zero end
// the kernel with an Error that names it; host code that touches device memory ends the program
// with a message. With AddressSanitizer its own report comes instead, and the kernel before it.
#pragma once

namespace farspan::simt {

// Once per host thread that runs kernels; more calls do nothing.
void catch_faults_of_this_thread();

}  // namespace farspan::simt
