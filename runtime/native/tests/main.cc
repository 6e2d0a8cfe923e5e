#include "testing.h"

int main() {
  qvit::test_gemm();
  qvit::test_rows();
  qvit::test_pack();
  qvit::test_integer_kernels();
  qvit::test_integer_gemm();
  qvit::test_fake_quantize();
  qvit::test_engine();
  qvit::test_integer_engine();
  qvit::test_check();
  qvit::test_mutants();
  std::printf("%d failed checks\n", qvit::failures);
  return qvit::failures == 0 ? 0 : 1;
}
