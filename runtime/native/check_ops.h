// What each op demands of the buffers, weights and constants it names. check.cc has established that they exist and are
// well formed by themselves.
#pragma once

#include <string>

#include "program.h"

namespace qvit {

inline constexpr int64_t kMaxElements = int64_t{1} << 31;  // of a buffer, weight or constant
inline constexpr int64_t kMaxInputs = 65536;               // 255 * 128 * 65536 stays inside 32 bits
inline constexpr int64_t kMax31 = int64_t{1} << 31;

// Throws ProgramError naming `where` unless the condition holds.
inline void need(bool condition, const std::string& where, const char* what) {
  if (!condition) throw ProgramError(where + ": " + what);
}

void check_op(const Program& program, const Op& op, const std::string& where);
void check_integer_op(const Program& program, const Op& op, const std::string& where);  // check_integer.cc

}  // namespace qvit
