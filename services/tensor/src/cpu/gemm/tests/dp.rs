//! What `vdpbf16ps` computes on the processor at hand, which the path `dp` rests on.
#![allow(unsafe_code, reason = "runs one instruction")]

use super::*;

/// `sum + [low, high] · [low, high]` by the instruction.
#[cfg(target_arch = "x86_64")]
fn dp(sum: f32, x: [f32; 2], w: [f32; 2]) -> f32 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn inner(sum: f32, x: i32, w: i32) -> f32 {
        let [x, w] = [x, w].map(|word| {
            // SAFETY: both are 64 bytes of any bits.
            unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word)) }
        });
        _mm512_cvtss_f32(_mm512_dpbf16_ps(_mm512_set1_ps(sum), x, w))
    }
    let word = |[low, high]: [f32; 2]| (u32::from(round(high)) << 16 | u32::from(round(low))).cast_signed();
    assert!(Isa::Avx512Bf16.is_available());
    // SAFETY: just asserted.
    unsafe { inner(sum, word(x), word(w)) }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_instruction_is_two_fused_multiply_adds_upper_first() {
    if !Isa::Avx512Bf16.is_available() {
        eprintln!("SKIPPED: this processor has no AVX-512 BF16");
        return;
    }
    let mut numbers = Numbers(5);
    let mut bf16 = |size| widen(round(numbers.next(size)));
    let mut lower_first = 0;
    for _ in 0..300_000 {
        let ([x, y], [v, w], sum) = ([bf16(2.0), bf16(2.0)], [bf16(2.0), bf16(2.0)], bf16(6.0) * 1.001);
        let got = dp(sum, [x, y], [v, w]);
        assert_eq!(got, x.mul_add(v, y.mul_add(w, sum)), "{sum} + {x}·{v} + {y}·{w}");
        lower_first += usize::from(got != y.mul_add(w, x.mul_add(v, sum)));
    }
    assert!(lower_first > 1000, "the numbers tell the orders apart");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_instruction_takes_denormals_for_zero() {
    if !Isa::Avx512Bf16.is_available() {
        eprintln!("SKIPPED: this processor has no AVX-512 BF16");
        return;
    }
    let tiny = 2.0_f32.powi(-70);
    assert_eq!(dp(0.0, [tiny, 0.0], [tiny, 0.0]), 0.0);
    assert_eq!(dp(1e-40, [0.0, 0.0], [0.0, 0.0]), 0.0);
    assert_eq!(tiny.mul_add(tiny, 0.0), 2.0_f32.powi(-140));
}

#[test]
fn paths_of_bf16_agree_at_the_length_of_a_real_row() {
    let case = Case::new([9, 1536, 70], Compute::Bf16, Dtype::Bf16, None);
    let specified = case.specified();
    for isa in isas() {
        let gemm = Gemm::new(isa).unwrap();
        assert_eq!(gemm.path(Compute::Bf16), if isa == Isa::Avx512Bf16 { "dp" } else { "fma" });
        assert_eq!(gemm.path(Compute::F32), "");
        assert_eq!(case.run(&gemm, &pool(2), 0..9), specified, "{isa:?}");
    }
}
