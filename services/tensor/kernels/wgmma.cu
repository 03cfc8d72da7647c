// Hopper's products of a warpgroup, which read shared memory and run beside other instructions (sm_90a). It stands
// before the kernels that use them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define WARPGROUP 128  // threads

// Register lists: operands %0 to %31 and %63 in the text, and the floats of an array that they stand for.
#define OPERANDS_32                                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPERANDS_64                                                                                  \
  OPERANDS_32                                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_16(d, i) SUMS_4(d, i), SUMS_4(d, i + 4), SUMS_4(d, i + 8), SUMS_4(d, i + 12)
#define SUMS_32(d) SUMS_16(d, 0), SUMS_16(d, 16)
#define SUMS_64(d) SUMS_32(d), SUMS_16(d, 32), SUMS_16(d, 48)

// A warpgroup's product of 64 rows, COLUMNS columns and a depth of 16; d: COLUMNS / 2 floats a thread.
template <int COLUMNS> struct Product;
template <> struct Product<64> {
  // a and b in shared memory, both with the depth innermost; `add` 0: d is replaced.
  DEVICE static void by_depth(float* d, u64 a, u64 b, int add) {
    asm volatile(
        "{.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" OPERANDS_32 "}, %32, %33, add, 1, 1, 0, 0;\n}"
        : SUMS_32(d) : "l"(a), "l"(b), "r"(add));
  }
  // a in registers; b in shared memory with the columns innermost. Added to d.
  DEVICE static void by_column(float* d, const u32* a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" OPERANDS_32 "}, {%32, %33, %34, %35}, %36, "
        "1, 1, 1, 1;"
        : SUMS_32(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};
template <> struct Product<128> {
  DEVICE static void by_depth(float* d, u64 a, u64 b, int add) {
    asm volatile(
        "{.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" OPERANDS_64 "}, %64, %65, add, 1, 1, 0, 0;\n}"
        : SUMS_64(d) : "l"(a), "l"(b), "r"(add));
  }
  DEVICE static void by_column(float* d, const u32* a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" OPERANDS_64 "}, {%64, %65, %66, %67}, %68, "
        "1, 1, 1, 1;"
        : SUMS_64(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from reading sums before the wait above it.
template <int COUNT> DEVICE void products_settle(float* d) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// Waits for the 128 threads that name the same barrier.
DEVICE void warpgroup_wait(int barrier) { asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory"); }
// Describes a matrix of 128-byte-swizzled atoms: `line`, from 64 columns to the next (where columns are innermost);
// `eight`, from 8 rows to the next. In bytes; a descriptor counts in 16.
DEVICE u64 atoms(u32 at, u32 line, u32 eight) {
  return (u64)((at & 0x3ffff) >> 4) | ((u64)(line >> 4) << 16) | ((u64)(eight >> 4) << 32) | ((u64)1 << 62);
}

// `x`, which is the same in all lanes of a warp: so the compiler knows, and keeps what follows from it, as descriptors,
// in the uniform registers that products read. Otherwise it moves each descriptor there between two products.
DEVICE int uniform(int x) { return __shfl_sync(~0u, x, 0); }
#endif
