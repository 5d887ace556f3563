//! The standard kernels of hardware profiles, and the channel width that they say a processor favours.

use std::time::Duration;

use pleach_domain::Tensor;
use pleach_domain::profile::MeasuredKernel;
use pleach_domain::runtime::{Runtime, RuntimeError, TimedModel};
use pleach_onnx::builder::{Dim, ElementKind, GraphBuilder, attribute};

use crate::error::InferenceError;

/// Height and width of the convolutions' images.
const SIDE: usize = 14;
/// Layers one after the other in one kernel, so that the call itself weighs little.
const LAYERS: usize = 4;
const CONV_3X3_WIDTHS: [usize; 10] = [15, 16, 24, 28, 31, 32, 48, 60, 63, 64];
const CONV_1X1_WIDTHS: [usize; 6] = [24, 32, 48, 60, 63, 64];
const DEPTHWISE_WIDTHS: [usize; 4] = [32, 48, 63, 64];
const GEMMS: [[usize; 3]; 2] = [[1, 512, 512], [64, 256, 256]];
/// Steps that are told apart, coarse to fine; each with (width, next multiple of the step) pairs that decide it.
const STEPS: [(usize, &[(usize, usize)]); 4] =
    [(32, &[(48, 64)]), (16, &[(24, 32)]), (8, &[(28, 32), (60, 64)]), (4, &[(15, 16), (31, 32), (63, 64)])];
/// The step where every width pays.
pub const MIN_WIDTH_STEP: usize = 1;

/// A kernel that every device times, under a name that never changes its meaning.
#[derive(Clone, Debug)]
pub struct StandardKernel {
    /// E.g. `conv3x3-64-64-14x14`: operator, channels in and out, image. Four such layers are one call.
    pub key: String,
    /// The graph and its input.
    pub model: TimedModel,
}

/// The standard kernels: float convolutions 3x3, 1x1 and depthwise at telling widths, and matrix products.
///
/// # Errors
/// [`InferenceError::Kernel`] when a graph cannot be built.
pub fn standard_kernels() -> Result<Vec<StandardKernel>, InferenceError> {
    let square = CONV_3X3_WIDTHS.map(|w| conv(&format!("conv3x3-{w}-{w}-{SIDE}x{SIDE}"), w, 3, 1));
    let pointwise = CONV_1X1_WIDTHS.map(|w| conv(&format!("conv1x1-{w}-{w}-{SIDE}x{SIDE}"), w, 1, 1));
    let depthwise = DEPTHWISE_WIDTHS.map(|w| conv(&format!("depthwise3x3-{w}-{SIDE}x{SIDE}"), w, 3, w));
    square.into_iter().chain(pointwise).chain(depthwise).chain(GEMMS.map(gemm)).collect()
}

/// Times the standard kernels, about `budget` of wall time each.
///
/// # Errors
/// When a kernel cannot be built or run.
pub fn measure_kernels(runtime: &dyn Runtime, budget: Duration) -> Result<Vec<MeasuredKernel>, RuntimeError> {
    let (keys, models): (Vec<_>, Vec<_>) = standard_kernels()?.into_iter().map(|k| (k.key, k.model)).unzip();
    let timings = runtime.time(&models, budget)?;
    Ok(keys.into_iter().zip(timings).map(|(key, timing)| MeasuredKernel { key, timing }).collect())
}

/// The multiple of channels that the measured convolutions favour: 1, 4, 8, 16 or 32.
///
/// A step is favoured when stopping short of its multiples does not pay: the narrower convolution takes back less than half of
/// what its missing channels are worth. The coarsest favoured step wins; without measurements it is [`MIN_WIDTH_STEP`].
pub fn width_step(kernels: &[MeasuredKernel]) -> usize {
    let mean_us = |width: usize| {
        let key = format!("conv3x3-{width}-{width}-{SIDE}x{SIDE}");
        kernels.iter().find(|k| k.key == key).map(|k| k.timing.mean_us).filter(|us| us.is_finite() && *us > 0.0)
    };
    let favoured = |pairs: &[(usize, usize)]| {
        let ratios: Vec<_> = pairs
            .iter()
            .filter_map(|&(narrow, wide)| {
                let worth = (narrow as f64 / wide as f64).powi(2);
                Some((mean_us(narrow)? / mean_us(wide)?, f64::midpoint(1.0, worth)))
            })
            .collect();
        let (took, pays): (f64, f64) = ratios.iter().fold((0.0, 0.0), |(t, p), r| (t + r.0.ln(), p + r.1.ln()));
        !ratios.is_empty() && took > pays
    };
    STEPS.iter().find(|(_, pairs)| favoured(pairs)).map_or(MIN_WIDTH_STEP, |(step, _)| *step)
}

fn conv(key: &str, width: usize, side: usize, groups: usize) -> Result<StandardKernel, InferenceError> {
    let mut graph = GraphBuilder::new(key);
    let shape = [1, width, SIDE, SIDE];
    let mut value = graph.input("x", ElementKind::Float, &shape.map(Dim::Fixed));
    let (fan_in, pad) = (width / groups * side * side, (side / 2) as i64);
    for layer in 0..LAYERS {
        let weights = graph.floats(&format!("w{layer}"), &[width, width / groups, side, side], &values(width * fan_in, fan_in));
        let bias = graph.floats(&format!("b{layer}"), &[width], &values(width, 4));
        let attributes =
            vec![attribute("kernel_shape", vec![side as i64; 2]), attribute("pads", vec![pad; 4]), attribute("group", groups as i64)];
        value = graph.node("Conv", &[&value, &weights, &bias], attributes);
        value = graph.node("Relu", &[&value], vec![]);
    }
    finish(key, graph, &value, shape.to_vec())
}

fn gemm([rows, inner, columns]: [usize; 3]) -> Result<StandardKernel, InferenceError> {
    let key = format!("gemm-{rows}-{inner}-{columns}");
    let mut graph = GraphBuilder::new(&key);
    let mut value = graph.input("x", ElementKind::Float, &[Dim::Fixed(rows), Dim::Fixed(inner)]);
    for layer in 0..LAYERS {
        let weights = graph.floats(&format!("w{layer}"), &[inner, columns], &values(inner * columns, inner));
        let bias = graph.floats(&format!("b{layer}"), &[columns], &values(columns, 4));
        value = graph.node("Gemm", &[&value, &weights, &bias], vec![]);
        value = graph.node("Relu", &[&value], vec![]);
    }
    finish(&key, graph, &value, vec![rows, inner])
}

fn finish(key: &str, mut graph: GraphBuilder, output: &str, shape: Vec<usize>) -> Result<StandardKernel, InferenceError> {
    let refused = |source| InferenceError::Kernel { key: key.to_owned(), source };
    graph.output(output);
    let model = graph.build().map_err(refused)?.encode();
    let input = Tensor::fp32(shape.clone(), values(shape.iter().product(), 1))
        .map_err(|source| InferenceError::Output { name: "x".to_owned(), source })?;
    Ok(StandardKernel { key: key.to_owned(), model: TimedModel { model, inputs: vec![("x".to_owned(), input)] } })
}

/// `count` fixed values around zero, scaled for `fan_in` so that layers neither explode nor fall into slow denormals.
fn values(count: usize, fan_in: usize) -> Vec<f32> {
    let scale = (6.0 / fan_in.max(1) as f32).sqrt();
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next() * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_domain::runtime::Timing;

    fn measured(times: &[(usize, f64)]) -> Vec<MeasuredKernel> {
        let timing = |us| Timing { mean_us: us, min_us: us, p50_us: us, p95_us: us, calls: 9 };
        times.iter().map(|&(w, us)| MeasuredKernel { key: format!("conv3x3-{w}-{w}-14x14"), timing: timing(us) }).collect()
    }

    #[test]
    fn width_step_follows_the_processor() {
        // AVX-512 as measured: 48 of 64 pays, 24 of 32 hardly, 60 and 63 not at all.
        let avx512 = measured(&[(24, 0.31), (32, 0.32), (48, 0.59), (60, 0.97), (63, 1.31), (64, 1.0), (28, 0.33), (31, 0.45)]);
        assert_eq!(width_step(&avx512), 16);
        let eights: Vec<_> = avx512
            .iter()
            .cloned()
            .map(|mut k| {
                if k.key.contains("-24-") {
                    k.timing.mean_us = 0.18
                };
                k
            })
            .collect();
        assert_eq!(width_step(&eights), 8);
        let smooth: Vec<_> = [15, 16, 24, 28, 31, 32, 48, 60, 63, 64].map(|w| (w, (w * w) as f64)).to_vec();
        assert_eq!(width_step(&measured(&smooth)), 1);
        assert_eq!(width_step(&[]), MIN_WIDTH_STEP);
    }

    #[test]
    fn keys_are_unique_and_fit_a_profile() {
        let kernels = standard_kernels().unwrap();
        let keys: std::collections::BTreeSet<_> = kernels.iter().map(|k| k.key.as_str()).collect();
        assert_eq!(keys.len(), kernels.len());
        assert!(keys.len() <= pleach_domain::profile::MAX_KERNELS && keys.contains("conv3x3-64-64-14x14"));
    }
}
