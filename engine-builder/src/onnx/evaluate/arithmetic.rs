//! Element by element: arithmetic, comparison, logic, casts, activations; and small matrix products.

use super::Operands;
use crate::onnx::{
    array::{Array, Fact, axis_of, broadcast_shape, cast, checked_len},
    dtype::{Dtype, Kind},
};

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    let op = x.node.op.as_str();
    if let Some(f) = unary(op) {
        return Some(x.get(0).map(|a| vec![a.map(a.kind, f)]));
    }
    if let Some(f) = predicate(op) {
        return Some(x.get(0).map(|a| vec![a.map(Kind::Bool, f)]));
    }
    Some(
        match op {
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" => binary(x),
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
                comparison(x)
            }
            "Max" | "Min" | "Sum" => variadic(x),
            "Where" => select(x),
            "Clip" => clip(x),
            "Cast" => cast_to(x),
            "CastLike" => like(x),
            "MatMul" | "FusedMatMul" => matmul(x),
            "QuickGelu" => swish(x, 1.702),
            "Swish" => swish(x, 1.0),
            "HardSigmoid" => x.get(0).map(|a| {
                let (alpha, beta) = (
                    f64::from(x.node.float("alpha").unwrap_or(0.2)),
                    f64::from(x.node.float("beta").unwrap_or(0.5)),
                );
                a.map(Kind::Float, |v| (alpha * v + beta).clamp(0.0, 1.0))
            }),
            _ => return None,
        }
        .map(|array| vec![array]),
    )
}

fn truth(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

fn unary(op: &str) -> Option<fn(f64) -> f64> {
    Some(match op {
        "Neg" => |v| -v,
        "Abs" => f64::abs,
        "Sqrt" => f64::sqrt,
        "Reciprocal" => |v| 1.0 / v,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Cos" => f64::cos,
        "Sin" => f64::sin,
        "Tanh" => f64::tanh,
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Sign" => |v| if v == 0.0 { 0.0 } else { v.signum() },
        "Sigmoid" => sigmoid,
        "Relu" => |v| v.max(0.0),
        "Softplus" => |v| v.exp().ln_1p(),
        "Identity" => |v| v,
        _ => return None,
    })
}

fn predicate(op: &str) -> Option<fn(f64) -> f64> {
    Some(match op {
        "Not" => |v| truth(v == 0.0),
        "IsNaN" => |v| truth(v.is_nan()),
        "IsInf" => |v| truth(v.is_infinite()),
        _ => return None,
    })
}

fn binary(x: &Operands<'_>) -> Fact<Array> {
    let (a, b) = (x.get(0)?, x.get(1)?);
    let integer = a.kind != Kind::Float;
    let f: fn(f64, f64) -> f64 = match x.node.op.as_str() {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" if integer => |a, b| (a / b).trunc(),
        "Div" => |a, b| a / b,
        "Mod" if x.node.int("fmod") == Some(1) => |a, b| a % b,
        "Mod" => |a, b| a - b * (a / b).floor(),
        _ => f64::powf,
    };
    a.zip(b, a.kind, f)
}

fn comparison(x: &Operands<'_>) -> Fact<Array> {
    let f: fn(f64, f64) -> f64 = match x.node.op.as_str() {
        "Equal" => |a, b| truth(a == b),
        "Greater" => |a, b| truth(a > b),
        "GreaterOrEqual" => |a, b| truth(a >= b),
        "Less" => |a, b| truth(a < b),
        "LessOrEqual" => |a, b| truth(a <= b),
        "And" => |a, b| truth(a != 0.0 && b != 0.0),
        "Or" => |a, b| truth(a != 0.0 || b != 0.0),
        _ => |a, b| truth((a != 0.0) != (b != 0.0)),
    };
    x.get(0)?.zip(x.get(1)?, Kind::Bool, f)
}

fn variadic(x: &Operands<'_>) -> Fact<Array> {
    let f: fn(f64, f64) -> f64 = match x.node.op.as_str() {
        "Max" => f64::max,
        "Min" => f64::min,
        _ => |a, b| a + b,
    };
    let mut all = x.get(0)?.clone();
    for idx in 1..x.len() {
        all = all.zip(x.get(idx)?, all.kind, f)?;
    }
    Ok(all)
}

fn select(x: &Operands<'_>) -> Fact<Array> {
    let (condition, yes, no) = (x.get(0)?, x.get(1)?, x.get(2)?);
    let shape = broadcast_shape(&broadcast_shape(&condition.shape, &yes.shape)?, &no.shape)?;
    let (condition, yes, no) =
        (condition.broadcast_to(&shape)?, yes.broadcast_to(&shape)?, no.broadcast_to(&shape)?);
    let pick = |((c, y), n): ((&f64, &f64), &f64)| if *c != 0.0 { *y } else { *n };
    let data = condition.data.iter().zip(&yes.data).zip(&no.data).map(pick).collect();
    Array::new(shape, yes.kind, data)
}

fn clip(x: &Operands<'_>) -> Fact<Array> {
    let bound = |idx: usize, name: &str| {
        x.optional(idx).and_then(Array::as_scalar).or_else(|| x.node.float(name).map(f64::from))
    };
    let low = bound(1, "min").unwrap_or(f64::NEG_INFINITY);
    let high = bound(2, "max").unwrap_or(f64::INFINITY);
    let a = x.get(0)?;
    Ok(a.map(a.kind, |v| v.max(low).min(high)))
}

fn cast_to(x: &Operands<'_>) -> Fact<Array> {
    let number = x.node.int("to").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let to = Dtype::from_number(number).map_err(|what| format!("casts to {what}"))?;
    Ok(cast(x.get(0)?, to))
}

fn like(x: &Operands<'_>) -> Fact<Array> {
    let to = match x.get(1)?.kind {
        Kind::Float => Dtype::F32,
        Kind::Int => Dtype::I64,
        Kind::Bool => Dtype::Bool,
    };
    Ok(cast(x.get(0)?, to))
}

fn swish(x: &Operands<'_>, default_alpha: f32) -> Fact<Array> {
    let alpha = f64::from(x.node.float("alpha").unwrap_or(default_alpha));
    Ok(x.get(0)?.map(Kind::Float, |v| v * sigmoid(alpha * v)))
}

/// `[…, M, K] · […, K, N]` with broadcast leading dimensions; `FusedMatMul` adds transposes and a factor.
fn matmul(x: &Operands<'_>) -> Fact<Array> {
    let (mut a, mut b) = (x.get(0)?.clone(), x.get(1)?.clone());
    if a.rank() == 0 || b.rank() == 0 {
        return Err("a product with a scalar".into());
    }
    let (vector_a, vector_b) = (a.rank() == 1, b.rank() == 1);
    if vector_a {
        a = a.reshaped(vec![1, a.data.len()])?;
    }
    if vector_b {
        b = b.reshaped(vec![b.data.len(), 1])?;
    }
    for (side, flag) in [(&mut a, "transA"), (&mut b, "transB")] {
        if x.node.int(flag).unwrap_or(0) != 0 {
            let mut perm: Vec<usize> = (0..side.rank()).collect();
            perm.swap(side.rank() - 1, side.rank() - 2);
            *side = side.transposed(&perm)?;
        }
    }
    let alpha = f64::from(x.node.float("alpha").unwrap_or(1.0));
    let mut out = product(&a, &b)?.map(Kind::Float, |v| v * alpha);
    if vector_b {
        out.shape.pop();
    }
    if vector_a {
        let axis = axis_of(if vector_b { -1 } else { -2 }, out.rank())?;
        out.shape.remove(axis);
    }
    Ok(out)
}

fn product(a: &Array, b: &Array) -> Fact<Array> {
    let (lead_a, core_a) = a.shape.split_at(a.rank() - 2);
    let (lead_b, core_b) = b.shape.split_at(b.rank() - 2);
    let (m, k, n) = (core_a[0], core_a[1], core_b[1]);
    if k != core_b[0] {
        return Err(format!("product of {:?} and {:?}", a.shape, b.shape));
    }
    let lead = broadcast_shape(lead_a, lead_b)?;
    let shape = [lead.as_slice(), &[m, n]].concat();
    let a = a.broadcast_to(&[lead.as_slice(), core_a].concat())?;
    let b = b.broadcast_to(&[lead.as_slice(), core_b].concat())?;
    let mut data = vec![0.0; checked_len(&shape)?];
    for batch in 0..lead.iter().product() {
        for row in 0..m {
            let out = &mut data[(batch * m + row) * n..][..n];
            for (idx, factor) in a.data[(batch * m + row) * k..][..k].iter().enumerate() {
                let line = &b.data[(batch * k + idx) * n..][..n];
                out.iter_mut().zip(line).for_each(|(o, v)| *o += factor * v);
            }
        }
    }
    Array::new(shape, Kind::Float, data)
}
