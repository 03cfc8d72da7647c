//! Against sums in f64.

use super::*;

#[test]
fn outputs_are_as_good_as_f32_allows() {
    let [rows, inputs, outputs] = [16, 1536, 97];
    for (compute, dtype) in KINDS {
        let case = Case::new([rows, inputs, outputs], compute, dtype, None);
        let mut exact = vec![0.0_f64; rows * outputs];
        for (row, exact) in exact.chunks_mut(outputs).enumerate() {
            for k in 0..inputs {
                let x = f64::from(case.x[row * inputs + k]);
                for (exact, weight) in exact.iter_mut().zip(&case.weights[k * outputs..]) {
                    *exact += x * f64::from(*weight);
                }
            }
        }
        let rms = (exact.iter().map(|value| value * value).sum::<f64>() / exact.len() as f64).sqrt();
        for isa in isas() {
            let gemm = Gemm::new(isa).unwrap();
            let out = case.run(&gemm, &pool(2), 0..rows);
            let worst = out.iter().zip(&exact).map(|(out, exact)| (f64::from(*out) - exact).abs());
            let worst = worst.fold(0.0, f64::max) / rms;
            assert!(worst < 1e-5, "{isa:?} {compute:?} {dtype:?}: {worst:e}");
        }
    }
}
