//! What follows a layer's sum, and how a squared error behind it is bounded by one before it.

use pleach_onnx::{Model, Node};

/// The function behind a layer's sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    None,
    /// Values are held within the bounds; Relu is `0..inf`.
    Clip(f32, f32),
    /// Slope below zero.
    Leaky(f32),
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x), by its tanh approximation.
    Gelu,
    /// x · clip(x / 6 + 1/2, 0, 1).
    HardSwish,
    Sigmoid,
    Tanh,
}

impl Activation {
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Clip(low, high) => x.max(low).min(high),
            Self::Leaky(slope) => {
                if x < 0.0 {
                    slope * x
                } else {
                    x
                }
            }
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * (1.0 + inner(x).tanh()),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }

    fn slope(self, x: f32) -> f32 {
        match self {
            Self::None => 1.0,
            Self::Clip(low, high) => f32::from(x > low && x < high),
            Self::Leaky(slope) => {
                if x < 0.0 {
                    slope
                } else {
                    1.0
                }
            }
            Self::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Self::Gelu => {
                let t = inner(x).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.797_884_6 * (1.0 + 0.134_145 * x * x)
            }
            Self::HardSwish => {
                if x <= -3.0 {
                    0.0
                } else if x >= 3.0 {
                    1.0
                } else {
                    x / 3.0 + 0.5
                }
            }
            Self::Sigmoid => {
                let s = sigmoid(x);
                s * (1.0 - s)
            }
            Self::Tanh => 1.0 - x.tanh().powi(2),
        }
    }

    /// Bound of the curvature of half the squared error behind the function.
    fn curvature(self) -> f32 {
        match self {
            Self::None | Self::Clip(..) | Self::Leaky(_) => 1.0,
            Self::Silu | Self::Gelu | Self::HardSwish => 1.3,
            Self::Sigmoid => 0.1,
            Self::Tanh => 1.0,
        }
    }

    /// The value whose squared distance from the sum majorises the error behind the function, near the sum `now`: for a clip, any
    /// value beyond the bound will do where the target is cut off (Zhang et al. 2015); else one step down the slope, divided by a
    /// bound of the curvature.
    pub(crate) fn majorised(self, target: f32, now: f32) -> f32 {
        match self {
            Self::None => target,
            Self::Clip(low, high) => {
                if target <= low {
                    now.min(low)
                } else if target >= high {
                    now.max(high)
                } else {
                    target
                }
            }
            Self::Leaky(_) | Self::Silu | Self::Gelu | Self::HardSwish | Self::Sigmoid | Self::Tanh => {
                now - self.slope(now) * (self.apply(now) - self.apply(target)) / self.curvature()
            }
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// √(2/π) (x + 0.044715 x³)
fn inner(x: f32) -> f32 {
    0.797_884_6 * (x + 0.044_715 * x * x * x)
}

/// The activation that all readers of a tensor apply together.
pub(crate) fn activation(model: &Model, tensor: &str) -> Activation {
    let readers: Vec<Node<'_>> = model.consumers(tensor).iter().filter_map(|u| model.node(u.node)).collect();
    if model.is_output(tensor) {
        return Activation::None;
    }
    if let [a, b] = readers.as_slice()
        && let Some(found) = gated(model, *a, *b).or_else(|| gated(model, *b, *a))
    {
        return found;
    }
    let mut all = readers.iter().map(|node| single(model, *node));
    match all.next().flatten() {
        Some(first) if all.all(|a| a == Some(first)) => first,
        Some(_) | None => Activation::None,
    }
}

fn single(model: &Model, node: Node<'_>) -> Option<Activation> {
    let bound = |index: usize, free: f32| node.input(index).map_or(Some(free), |name| model.floats(name)?.1.first().copied());
    match node.op_type() {
        "Relu" => Some(Activation::Clip(0.0, f32::INFINITY)),
        "Clip" if node.attribute("min").is_none() && node.attribute("max").is_none() => {
            Some(Activation::Clip(bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?))
        }
        "Clip" => Some(Activation::Clip(node.float("min").unwrap_or(f32::NEG_INFINITY), node.float("max").unwrap_or(f32::INFINITY))),
        "LeakyRelu" => Some(Activation::Leaky(node.float("alpha").unwrap_or(0.01))),
        "Gelu" | "FastGelu" if node.input(1).is_none() => Some(Activation::Gelu),
        "HardSwish" => Some(Activation::HardSwish),
        "Sigmoid" => Some(Activation::Sigmoid),
        "Tanh" => Some(Activation::Tanh),
        _ => None,
    }
}

/// `x * gate(x)`: a Sigmoid (SiLU), a HardSigmoid of a sixth (hard swish), or the error function's ladder (GELU).
fn gated(model: &Model, gate: Node<'_>, product: Node<'_>) -> Option<Activation> {
    let reads = |node: Node<'_>, name: &str| node.inputs().any(|i| i == name);
    let behind = gate.output(0)?;
    if product.is("Mul") && reads(product, behind) {
        let sixth = gate.float("alpha").is_some_and(|a| (a - 1.0 / 6.0).abs() < 1e-4);
        return match gate.op_type() {
            "Sigmoid" => Some(Activation::Silu),
            "HardSigmoid" if sixth => Some(Activation::HardSwish),
            _ => None,
        };
    }
    let scaled = gate.is("Div") || gate.is("Mul");
    let &[only] = model.consumers(behind) else { return None };
    (scaled && product.is("Mul") && model.node(only.node)?.is("Erf")).then_some(Activation::Gelu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_functions() {
        for f in [Activation::Silu, Activation::Gelu, Activation::HardSwish, Activation::Sigmoid, Activation::Tanh, Activation::Leaky(0.1)]
        {
            for x in [-4.0f32, -1.3, -0.2, 0.4, 1.7, 5.0] {
                let numeric = (f.apply(x + 1e-2) - f.apply(x - 1e-2)) / 2e-2;
                assert!((numeric - f.slope(x)).abs() < 2e-3, "{f:?} at {x}: {numeric} {}", f.slope(x));
            }
        }
    }

    #[test]
    fn majorised_steps_never_raise_the_error() {
        for f in [Activation::Silu, Activation::Gelu, Activation::HardSwish, Activation::Clip(0.0, 6.0), Activation::Leaky(0.1)] {
            for target in [-3.0f32, -0.5, 0.3, 2.0, 7.0] {
                for now in [-5.0f32, -1.0, 0.1, 1.0, 4.0, 8.0] {
                    let error = |z: f32| (f.apply(z) - f.apply(target)).abs();
                    assert!(error(f.majorised(target, now)) <= error(now) + 1e-4, "{f:?} {target} {now}");
                }
            }
        }
    }
}
