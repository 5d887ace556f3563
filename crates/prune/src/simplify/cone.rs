//! What a cone of element-wise nodes computes, found by evaluating it.
//!
//! Exporters write the same function in many ways (GELU alone has six spellings in the wild), so a cone is recognised by its
//! values and not by its spelling: everything between one source tensor and a result is evaluated on sample points in double
//! precision.

use pleach_onnx::{Model, Node, NodeId};

/// Most nodes of a cone.
const MOST_NODES: usize = 24;

/// The tensors a cone is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cone {
    /// The one tensor it starts from.
    pub(super) source: String,
    /// Its nodes, those nearest to the result first.
    pub(super) nodes: Vec<NodeId>,
    operators: Vec<String>,
    /// Scalars added to something, e.g. an epsilon.
    pub(super) added: Vec<f64>,
}

impl Cone {
    /// The cones of nodes over scalars and the last axis that end in `result` and start from one tensor, the largest first.
    pub(super) fn behind(model: &Model, result: &str) -> Vec<Self> {
        let (mut whole, mut sources) = (Self::default(), Vec::new());
        let alone = whole.walk(model, result, None, &mut sources);
        // Where a cone has several sources, one may still start at what several of its nodes read.
        let mut stops: Vec<Option<String>> = sources.into_iter().rev().map(Some).collect();
        stops.extend(alone.then_some(None));
        let from = |stop: Option<String>| {
            let mut cone = Self::default();
            cone.walk(model, result, stop.as_deref(), &mut Vec::new()).then_some(cone)
        };
        let mut cones: Vec<Self> = stops.into_iter().filter_map(from).collect();
        cones.sort_by_key(|cone| std::cmp::Reverse(cone.nodes.len()));
        cones
    }

    /// Walks back from `result` to sources and to `stop`; notes what several nodes read. False when there is not one source.
    fn walk(&mut self, model: &Model, result: &str, stop: Option<&str>, shared: &mut Vec<String>) -> bool {
        let mut open = vec![result.to_owned()];
        let mut seen: Vec<String> = Vec::new();
        let mut one = true;
        while let Some(tensor) = open.pop() {
            if seen.contains(&tensor) || scalar(model, &tensor).is_some() {
                continue;
            }
            if model.consumers(&tensor).len() > 1 {
                shared.push(tensor.clone());
            }
            let node = model.producer(&tensor).filter(|_| stop != Some(tensor.as_str()));
            match node.and_then(|node| operands(model, node).map(|of| (node, of))) {
                Some((node, operands)) if self.nodes.len() < MOST_NODES => {
                    self.nodes.push(node.id);
                    self.operators.push(node.op_type().to_owned());
                    if node.is("Add") {
                        self.added.extend(operands.iter().filter_map(|o| scalar(model, o)));
                    }
                    open.extend(operands.into_iter().map(str::to_owned));
                }
                Some(_) => one = false,
                None if self.source.is_empty() || self.source == tensor => self.source.clone_from(&tensor),
                None => one = false,
            }
            seen.push(tensor);
        }
        one && !self.source.is_empty() && !self.nodes.is_empty()
    }

    /// Whether an operator is part of it.
    pub(super) fn has(&self, operator: &str) -> bool {
        self.operators.iter().any(|o| o == operator)
    }

    /// The cone's values along the last axis where the source holds `points`; a single value stands for all.
    pub(super) fn values(&self, model: &Model, result: &str, points: &[f64]) -> Option<Vec<f64>> {
        value(model, result, &self.source, points, &mut MOST_NODES.saturating_mul(8))
    }
}

/// The inputs of a node that belongs to a cone; `None` for all other nodes.
fn operands<'a>(model: &Model, node: Node<'a>) -> Option<Vec<&'a str>> {
    if !node.domain().is_empty() {
        return None;
    }
    match node.op_type() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" => {
            let (a, b) = (node.input(0)?, node.input(1)?);
            let vector = |name: &str| model.constant_dims(name).is_some() && scalar(model, name).is_none();
            (!vector(a) && !vector(b)).then(|| vec![a, b])
        }
        "Neg" | "Sqrt" | "Reciprocal" | "Erf" | "Tanh" | "Sigmoid" => Some(vec![node.input(0)?]),
        "ReduceMean" => {
            let axes = match (node.ints("axes"), node.input(1)) {
                (Some(axes), _) => axes.to_vec(),
                (None, Some(name)) => model.ints(name)?,
                (None, None) => return None,
            };
            (axes == [-1] && node.int("keepdims").unwrap_or(1) == 1).then_some(vec![node.input(0)?])
        }
        _ => None,
    }
}

fn value(model: &Model, tensor: &str, source: &str, points: &[f64], fuel: &mut usize) -> Option<Vec<f64>> {
    *fuel = fuel.checked_sub(1)?;
    if tensor == source {
        return Some(points.to_vec());
    }
    if let Some(constant) = scalar(model, tensor) {
        return Some(vec![constant]);
    }
    let node = model.producer(tensor)?;
    let of = operands(model, node)?;
    let inputs: Vec<Vec<f64>> = of.into_iter().map(|o| value(model, o, source, points, fuel)).collect::<Option<_>>()?;
    let each = |f: fn(f64) -> f64| inputs.first().map(|x| x.iter().map(|&x| f(x)).collect());
    let both = |f: fn(f64, f64) -> f64| {
        let [a, b] = inputs.as_slice() else { return None };
        let at = |list: &[f64], i: usize| if list.len() == 1 { list.first().copied() } else { list.get(i).copied() };
        (0..a.len().max(b.len())).map(|i| Some(f(at(a, i)?, at(b, i)?))).collect()
    };
    match node.op_type() {
        "Add" => both(|a, b| a + b),
        "Sub" => both(|a, b| a - b),
        "Mul" => both(|a, b| a * b),
        "Div" => both(|a, b| a / b),
        "Pow" => both(f64::powf),
        "Neg" => each(|x| -x),
        "Sqrt" => each(f64::sqrt),
        "Reciprocal" => each(f64::recip),
        "Erf" => each(erf),
        "Tanh" => each(f64::tanh),
        "Sigmoid" => each(|x| 1.0 / (1.0 + (-x).exp())),
        "ReduceMean" => inputs.first().map(|x| vec![x.iter().sum::<f64>() / x.len().max(1) as f64]),
        _ => None,
    }
}

/// The value of a constant of one element.
pub(super) fn scalar(model: &Model, name: &str) -> Option<f64> {
    if model.constant_dims(name)?.iter().product::<usize>() != 1 {
        return None;
    }
    let constant = model.constant(name)?;
    let float = constant.floats().and_then(<[f32]>::first).map(|&v| f64::from(v));
    float.or_else(|| constant.ints().and_then(<[i64]>::first).map(|&v| v as f64))
}

/// The error function, by its Taylor series (Abramowitz and Stegun, 7.1.5); 1 beyond the range in which that is exact.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
        if n > 200.0 {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_the_tabulated_values() {
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (-2.0, -0.995_322_265_0), (3.5, 0.999_999_256_9)] {
            assert!((erf(x) - want).abs() < 1e-9, "{x}: {}", erf(x));
        }
    }
}
