// The inner loop on vpdpbusd: four unsigned x signed byte products added to a 32-bit lane, exactly, for any widths. No
// runs, no widening, no saturation: 8 x 8 bits cost what 2 x 2 bits do. Included by kernels_avx512.cc only.
//
//   zmm0..3   one quad of up to four panels, 16 columns each (a quad of a panel is one register, see layout.h)
//   zmm4,5    four bytes of a row, broadcast          zmm8..31  sums: row r, panel p in zmm(8 + 4 r + p)
//
// A quad of 6 rows x 4 panels is 24 vpdpbusd and 10 loads: 1536 multiply-adds. As in avx2/tile.h the registers are
// named by hand; from intrinsics GCC 12 copies and spills every sum in the loop (measured: 106 instead of 227 GMAC/s a
// core).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../layout.h"

namespace {

constexpr int kTilePanels = 4;

// clang-format off
#define QVIT_DOT(panel, x, sum) "vpdpbusd %%zmm" #panel ",%%zmm" #x ",%%zmm" #sum "\n\t"
#define QVIT_PUT(i, at) "vmovdqa32 %%zmm" #i "," #at "(%[o])\n\t"

// Over the panels of one row: DO(panel, sum register, place in the tile).
#define QVIT_PANELS_1(DO, a, b, c, d, at, bt, ct, dt) DO(0, a, at)
#define QVIT_PANELS_2(DO, a, b, c, d, at, bt, ct, dt) DO(0, a, at) DO(1, b, bt)
#define QVIT_PANELS_3(DO, a, b, c, d, at, bt, ct, dt) DO(0, a, at) DO(1, b, bt) DO(2, c, ct)
#define QVIT_PANELS_4(DO, a, b, c, d, at, bt, ct, dt) DO(0, a, at) DO(1, b, bt) DO(2, c, ct) DO(3, d, dt)

// Sums start at the corrections of their columns: loaded for row 0, copied (which costs nothing) for the others.
#define QVIT_START(panel, sum, at) "vmovdqu32 " #at "(%[k]), %%zmm" #sum "\n\t"
#define QVIT_COPY(panel, sum, at) QVIT_COPY_##panel(sum)
#define QVIT_COPY_0(sum) "vmovdqa64 %%zmm8, %%zmm" #sum "\n\t"
#define QVIT_COPY_1(sum) "vmovdqa64 %%zmm9, %%zmm" #sum "\n\t"
#define QVIT_COPY_2(sum) "vmovdqa64 %%zmm10, %%zmm" #sum "\n\t"
#define QVIT_COPY_3(sum) "vmovdqa64 %%zmm11, %%zmm" #sum "\n\t"
#define QVIT_DOT_4(panel, sum, at) QVIT_DOT(panel, 4, sum)
#define QVIT_DOT_5(panel, sum, at) QVIT_DOT(panel, 5, sum)
#define QVIT_STORE(panel, sum, at) QVIT_PUT(sum, at)

#define QVIT_SUMS_0 8, 9, 10, 11, 0, 64, 128, 192
#define QVIT_SUMS_1 12, 13, 14, 15, 256, 320, 384, 448
#define QVIT_SUMS_2 16, 17, 18, 19, 512, 576, 640, 704
#define QVIT_SUMS_3 20, 21, 22, 23, 768, 832, 896, 960
#define QVIT_SUMS_4 24, 25, 26, 27, 1024, 1088, 1152, 1216
#define QVIT_SUMS_5 28, 29, 30, 31, 1280, 1344, 1408, 1472

#define QVIT_APPLY(MACRO, ...) MACRO(__VA_ARGS__)
#define QVIT_ROW(np, DO, row) QVIT_APPLY(QVIT_PANELS_##np, DO, QVIT_SUMS_##row)
#define QVIT_EACH_1(np, DO) QVIT_ROW(np, DO, 0)
#define QVIT_EACH_2(np, DO) QVIT_EACH_1(np, DO) QVIT_ROW(np, DO, 1)
#define QVIT_EACH_3(np, DO) QVIT_EACH_2(np, DO) QVIT_ROW(np, DO, 2)
#define QVIT_EACH_4(np, DO) QVIT_EACH_3(np, DO) QVIT_ROW(np, DO, 3)
#define QVIT_EACH_5(np, DO) QVIT_EACH_4(np, DO) QVIT_ROW(np, DO, 4)
#define QVIT_EACH_6(np, DO) QVIT_EACH_5(np, DO) QVIT_ROW(np, DO, 5)

#define QVIT_BEGIN_1(np) QVIT_ROW(np, QVIT_START, 0)
#define QVIT_BEGIN_2(np) QVIT_BEGIN_1(np) QVIT_ROW(np, QVIT_COPY, 1)
#define QVIT_BEGIN_3(np) QVIT_BEGIN_2(np) QVIT_ROW(np, QVIT_COPY, 2)
#define QVIT_BEGIN_4(np) QVIT_BEGIN_3(np) QVIT_ROW(np, QVIT_COPY, 3)
#define QVIT_BEGIN_5(np) QVIT_BEGIN_4(np) QVIT_ROW(np, QVIT_COPY, 4)
#define QVIT_BEGIN_6(np) QVIT_BEGIN_5(np) QVIT_ROW(np, QVIT_COPY, 5)

// Rows 0..2 are addressed from `a`, rows 3..5 from `c` = a + 3 strides; two broadcasts take turns.
#define QVIT_STEP(np, row, address, x) "vpbroadcastd " address ", %%zmm" #x "\n\t" QVIT_ROW(np, QVIT_DOT_##x, row)
#define QVIT_STEPS_1(np) QVIT_STEP(np, 0, "(%[a])", 4)
#define QVIT_STEPS_2(np) QVIT_STEPS_1(np) QVIT_STEP(np, 1, "(%[a],%[l])", 5)
#define QVIT_STEPS_3(np) QVIT_STEPS_2(np) QVIT_STEP(np, 2, "(%[a],%[l],2)", 4)
#define QVIT_STEPS_4(np) QVIT_STEPS_3(np) QVIT_STEP(np, 3, "(%[c])", 5)
#define QVIT_STEPS_5(np) QVIT_STEPS_4(np) QVIT_STEP(np, 4, "(%[c],%[l])", 4)
#define QVIT_STEPS_6(np) QVIT_STEPS_5(np) QVIT_STEP(np, 5, "(%[c],%[l],2)", 5)

#define QVIT_LOAD_1 "vmovdqa32 (%[b]), %%zmm0\n\t"
#define QVIT_LOAD_2 QVIT_LOAD_1 "vmovdqa32 (%[b],%[p]), %%zmm1\n\t"
#define QVIT_LOAD_3 QVIT_LOAD_2 "vmovdqa32 (%[b],%[p],2), %%zmm2\n\t"
#define QVIT_LOAD_4 QVIT_LOAD_3 "vmovdqa32 (%[d]), %%zmm3\n\t"

#define QVIT_CLOBBERS                                                                                           \
  "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",    \
      "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",        \
      "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31"

#define QVIT_DOT_TILE(nr, np)                                                                              \
  asm volatile(QVIT_BEGIN_##nr(np)                                                                          \
               ".p2align 5\n1:\n\t"                                                                        \
               QVIT_LOAD_##np QVIT_STEPS_##nr(np)                                                          \
               "add $4, %[a]\n\tadd $4, %[c]\n\tadd $64, %[b]\n\tadd $64, %[d]\n\tdec %[q]\n\tjnz 1b\n\t"  \
               QVIT_EACH_##nr(np, QVIT_STORE)                                                              \
               : [a] "+r"(a), [c] "+r"(c), [b] "+r"(b), [d] "+r"(d), [q] "+r"(quads)                       \
               : [l] "r"(stride), [p] "r"(panel_bytes), [o] "r"(sums), [k] "r"(correction)                 \
               : QVIT_CLOBBERS)

#define QVIT_DOT_ROWS(np)                  \
  switch (rows) {                          \
    case 1: QVIT_DOT_TILE(1, np); break;   \
    case 2: QVIT_DOT_TILE(2, np); break;   \
    case 3: QVIT_DOT_TILE(3, np); break;   \
    case 4: QVIT_DOT_TILE(4, np); break;   \
    case 5: QVIT_DOT_TILE(5, np); break;   \
    default: QVIT_DOT_TILE(6, np); break;  \
  }
// clang-format on

// rows x panels of one block of `quads` >= 1, with their corrections; sums: int32 [6][4][16], 64-byte aligned.
inline void tile_sums(const uint8_t* a, ptrdiff_t stride, int rows, const int8_t* b, ptrdiff_t panel_bytes, int panels,
                      int64_t quads, const int32_t* correction, int32_t* sums) {
  const uint8_t* c = a + 3 * stride;
  const int8_t* d = b + 3 * panel_bytes;
  switch (panels) {
    case 1: QVIT_DOT_ROWS(1) break;
    case 2: QVIT_DOT_ROWS(2) break;
    case 3: QVIT_DOT_ROWS(3) break;
    default: QVIT_DOT_ROWS(4) break;
  }
}

}  // namespace
