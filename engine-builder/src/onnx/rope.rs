//! Rotary position embedding: the table a layer rotates by, the frequencies behind it, and whether they explain all of it.

use takt_engine::spec::{RopePairing, RopeSpec};

use super::{
    array::{Array, Fact},
    dtype::{Dtype, Kind},
    evaluate::table_tensors,
    graph::{Node, TensorId},
    heads::RotaryTable,
    landmarks::behind_movement,
    trace::Trace,
};

/// A table, as far as the graph tells: one candidate for how a layer rotates.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Rows of the trial run's positions, one column a pair.
    pub table: RotaryTable,
    /// Which elements pair up.
    pub pairing: RopePairing,
    /// Tensors of cosines and sines.
    pub tensors: (TensorId, TensorId),
}

/// Ways to read the rotary operands among the nodes between projection and scores.
///
/// # Errors
/// When there is none.
pub fn candidates(trace: &Trace<'_>, nodes: &[usize]) -> Fact<Vec<Candidate>> {
    let graph = trace.graph;
    for node in nodes.iter().map(|idx| &graph.nodes[*idx]) {
        if let Some(tensors) = table_tensors(node) {
            return Ok(vec![from_operator(trace, node, tensors)?]);
        }
    }
    let mut cosines = None;
    let mut sines = None;
    for node in nodes.iter().map(|idx| &graph.nodes[*idx]).filter(|n| n.op == "Mul") {
        for operand in node.inputs.iter().flatten().filter(|i| !trace.is_hidden(**i)) {
            let Ok(value) = trace.value_or_constant(*operand) else { continue };
            match wave(&value, trace.len) {
                Some(Wave::Cosine) => cosines = cosines.or(Some((*operand, value))),
                Some(Wave::Sine) => sines = sines.or(Some((*operand, value))),
                None => {}
            }
        }
    }
    let (Some((cos_tensor, cos)), Some((sin_tensor, sin))) = (cosines, sines) else {
        return Err("no rotary position embedding (cosines and sines multiplied to queries)".into());
    };
    Ok(readings(&cos, &sin, trace.len)?
        .into_iter()
        .map(|(table, pairing)| Candidate { table, pairing, tensors: (cos_tensor, sin_tensor) })
        .collect())
}

fn from_operator(trace: &Trace<'_>, node: &Node, tensors: (TensorId, TensorId)) -> Fact<Candidate> {
    let interleaved = node.int("interleaved").or_else(|| node.int("rotary_interleaved")).unwrap_or(0) != 0;
    let full = RotaryTable::new(&trace.value_or_constant(tensors.0)?, &trace.value_or_constant(tensors.1)?)?;
    let positions: Vec<i64> = (0..trace.len as i64).collect();
    let pairing = if interleaved { RopePairing::Interleaved } else { RopePairing::Half };
    Ok(Candidate { table: full.at(&positions)?, pairing, tensors })
}

enum Wave {
    Cosine,
    Sine,
}

/// At position 0 every cosine is the same and every sine is 0.
fn wave(value: &Array, len: usize) -> Option<Wave> {
    let width = *value.shape.last()?;
    let fits = value.kind == Kind::Float && width > 0 && len > 1 && value.data.len() == len * width;
    let (first, rest) = value.data.split_at_checked(width).filter(|_| fits)?;
    if first.iter().all(|v| v.abs() < 1e-12) && rest.iter().any(|v| *v != 0.0) {
        return Some(Wave::Sine);
    }
    let same = first.iter().all(|v| (v - first[0]).abs() < 1e-12) && first[0] > 0.0;
    (same && rest.iter().any(|v| (v - first[0]).abs() > 1e-12)).then_some(Wave::Cosine)
}

/// The ways columns may stand for pairs: one column each, or two equal ones in either order.
fn readings(cos: &Array, sin: &Array, len: usize) -> Fact<Vec<(RotaryTable, RopePairing)>> {
    let full = RotaryTable::new(cos, sin)?;
    if full.rows() != len {
        return Err(format!("rotary table of {} rows for {len} tokens", full.rows()));
    }
    let width = full.width;
    let pick = |columns: Vec<usize>| RotaryTable {
        width: columns.len(),
        cos: (0..len)
            .flat_map(|row| columns.iter().map(move |c| row * width + c))
            .map(|i| full.cos[i])
            .collect(),
        sin: (0..len)
            .flat_map(|row| columns.iter().map(move |c| row * width + c))
            .map(|i| full.sin[i])
            .collect(),
    };
    let mut all = Vec::new();
    if width.is_multiple_of(2) {
        let (low, high) = (pick((0..width / 2).collect()), pick((width / 2..width).collect()));
        if low.cos == high.cos && low.sin == high.sin {
            all.push((low, RopePairing::Half));
        }
        let (even, odd) = (pick((0..width).step_by(2).collect()), pick((1..width).step_by(2).collect()));
        if even.cos == odd.cos && even.sin == odd.sin {
            all.push((even, RopePairing::Interleaved));
        }
    }
    all.push((full.clone(), RopePairing::Half));
    all.push((full, RopePairing::Interleaved));
    Ok(all)
}

/// Resolves the frequencies behind a candidate.
///
/// # Errors
/// When no fixed frequencies explain the table (a table that changes with the context length, say).
pub fn resolve(trace: &Trace<'_>, candidate: &Candidate) -> Fact<(RopeSpec, Option<usize>)> {
    let cache = stored_table(trace, candidate);
    let table = cache.as_ref().map_or(&candidate.table, |(table, _)| table);
    let rounding = cache.as_ref().map_or(0.0, |(_, dtype)| rounding(*dtype));
    let factor = table.cos.first().copied().unwrap_or(0.0);
    if factor <= 0.0 || table.rows() < 2 {
        return Err(format!("a rotary table of {} rows, starting with {factor}", table.rows()));
    }
    let mut frequencies = measure(table)?;
    if let Some(exact) = angles(trace, candidate.tensors.0) {
        snap(&mut frequencies, &exact);
    }
    explain(table, &frequencies, factor, rounding)?;
    let inv_freq: Vec<f32> = frequencies.iter().map(|f| *f as f32).collect();
    let theta = base(&frequencies);
    let plain = frequencies
        .iter()
        .enumerate()
        .all(|(i, f)| (f / theta.powf(-(i as f64) / frequencies.len() as f64) - 1.0).abs() < 1e-4);
    let scaling = if plain && (factor - 1.0).abs() < 1e-6 { "default" } else { "onnx-cache" };
    let positions = cache.map(|(table, _)| table.rows());
    Ok((
        RopeSpec {
            theta,
            scaling: scaling.into(),
            inv_freq,
            attention_factor: factor as f32,
            pairing: candidate.pairing,
        },
        positions,
    ))
}

/// The whole stored table, where the cosines are rows of one.
fn stored_table(trace: &Trace<'_>, candidate: &Candidate) -> Option<(RotaryTable, Dtype)> {
    let graph = trace.graph;
    let (cos, sin) =
        (behind_movement(graph, candidate.tensors.0), behind_movement(graph, candidate.tensors.1));
    let (stored, _) = (graph.tensor(cos).stored.as_ref()?, graph.tensor(sin).stored.as_ref()?);
    let table = RotaryTable::new(
        &Array::from_stored(stored).ok()?,
        &Array::from_stored(graph.tensor(sin).stored.as_ref()?).ok()?,
    )
    .ok()?;
    if table.width == candidate.table.width {
        return Some((table, stored.dtype));
    }
    // Doubled columns: keep those the candidate reads.
    let rows = table.rows();
    let step = table.width.checked_div(candidate.table.width).filter(|s| *s == 2)?;
    let column = |pair: usize| if candidate.pairing == RopePairing::Half { pair } else { pair * step };
    let pick = |data: &[f64]| {
        (0..rows)
            .flat_map(|row| (0..candidate.table.width).map(move |p| (row, p)))
            .map(|(row, p)| data[row * table.width + column(p)])
            .collect()
    };
    Some((
        RotaryTable { width: candidate.table.width, cos: pick(&table.cos), sin: pick(&table.sin) },
        stored.dtype,
    ))
}

/// Largest rounding error of a cosine in a stored type.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 4e-3,
        Dtype::F16 => 5e-4,
        _ => 1e-6,
    }
}

/// Frequencies from the angles at positions 1, 2, 4, …: each doubling halves the error that rounding left.
fn measure(table: &RotaryTable) -> Fact<Vec<f64>> {
    let angle = |row: usize, pair: usize| {
        table.sin[row * table.width + pair].atan2(table.cos[row * table.width + pair])
    };
    let mut frequencies = Vec::with_capacity(table.width);
    for pair in 0..table.width {
        let mut frequency = angle(1, pair);
        let mut row = 2;
        while row < table.rows() {
            let turns = angle(row, pair) - frequency * row as f64;
            let off = turns - (turns / std::f64::consts::TAU).round() * std::f64::consts::TAU;
            if off.abs() > 0.5 {
                return Err(format!(
                    "the rotary table does not turn evenly: pair {pair} is {off:.2} rad off at position {row}; a position-dependent table is not supported"
                ));
            }
            frequency += off / row as f64;
            row *= 2;
        }
        frequencies.push(frequency);
    }
    Ok(frequencies)
}

/// The angles whose cosine is taken in the graph, at position 1.
fn angles(trace: &Trace<'_>, cos: TensorId) -> Option<Vec<f64>> {
    let graph = trace.graph;
    let mut at = behind_movement(graph, cos);
    loop {
        let node = graph.producer(at)?;
        if node.op == "Cos" {
            break;
        }
        // The attention factor of YaRN is a constant multiplied to the cosines.
        let operands = (node.op == "Mul").then(|| (node.input(0), node.input(1)));
        let next = match operands? {
            (Some(value), Some(factor)) if trace.is_constant(factor) => value,
            (Some(factor), Some(value)) if trace.is_constant(factor) => value,
            _ => return None,
        };
        at = behind_movement(graph, next);
    }
    let angles = trace.value_or_constant(graph.producer(at)?.input(0)?).ok()?;
    let width = *angles.shape.last()?;
    (angles.data.len() == trace.len * width && trace.len > 1).then(|| angles.data[width..2 * width].to_vec())
}

/// Replaces each measured frequency by the exact one it was measured from.
fn snap(frequencies: &mut [f64], exact: &[f64]) {
    for frequency in frequencies {
        let nearest =
            exact.iter().copied().min_by(|a, b| (a - *frequency).abs().total_cmp(&(b - *frequency).abs()));
        if let Some(nearest) = nearest.filter(|n| (n - *frequency).abs() <= 1e-6 * (1e-3 + frequency.abs())) {
            *frequency = nearest;
        }
    }
}

/// Checks that the frequencies give back every row.
fn explain(table: &RotaryTable, frequencies: &[f64], factor: f64, rounding: f64) -> Fact<()> {
    for row in 0..table.rows() {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let angle = frequency * row as f64;
            // Exporters compute position · frequency in f32.
            let tolerance = factor * (2.0 * rounding + 1e-5 + 3e-7 * angle.abs());
            let at = row * table.width + pair;
            let off = (table.cos[at] - factor * angle.cos())
                .abs()
                .max((table.sin[at] - factor * angle.sin()).abs());
            if off > tolerance || off.is_nan() {
                return Err(format!(
                    "the rotary table is {off:.1e} off a fixed frequency at position {row}, pair {pair}; a position-dependent table is not supported"
                ));
            }
        }
    }
    Ok(())
}

/// The base, from the two fastest pairs, which scalings leave alone.
fn base(frequencies: &[f64]) -> f64 {
    let [first, second, ..] = frequencies else { return 10_000.0 };
    let theta = (first / second).powf(frequencies.len() as f64);
    let digits = 10_f64.powi(4 - theta.abs().log10().floor() as i32);
    let rounded = (theta * digits).round() / digits;
    if rounded.is_finite() { rounded } else { 10_000.0 }
}
