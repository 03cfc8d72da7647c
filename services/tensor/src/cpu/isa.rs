//! Which instructions this processor has, found once at run time.

/// Instruction sets that have kernels of their own, from the plainest to the richest. Each includes those
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: the specification, on any processor.
    Scalar,
    /// AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F, BW, VL and DQ: 512-bit vectors.
    Avx512,
    /// AVX-512 with BF16: two bf16 products an instruction and lane.
    Avx512Bf16,
}

impl Isa {
    /// All of them, plainest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The fastest that this processor has.
    ///
    /// That is the richest, except that BF16 is passed over where its dot product has half the rate of the two
    /// fused multiply-adds it stands for: on Intel's processors (measured on one with AMX: 124 GFLOP/s against
    /// 243). Both give the same bits, see [`super::gemm`].
    pub fn detect() -> Isa {
        let wanted = |isa: &Isa| isa.is_available() && !(*isa == Isa::Avx512Bf16 && is_intel());
        Isa::ALL.into_iter().rev().find(wanted).unwrap_or(Isa::Scalar)
    }

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512vl")
                    && has!("avx512dq")
            }
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && has!("avx512bf16"),
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Scalar
    }

    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
        }
    }
}

/// Whether Intel made this processor. Slow under a hypervisor, so ask once.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    vendor.as_flattened() == b"GenuineIntel"
}

/// Whether Intel made this processor. Slow under a hypervisor, so ask once.
#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
