//! Matrix products: 32-bit sums in the order of what is summed, so that a row does not depend on which rows it is computed beside.

use super::{
    Result, RunError,
    tensor::{Call, Tensor},
};

/// Columns whose sums are kept in registers.
const COLS: usize = 8;
/// Rows that share a load of a column.
const ROWS: usize = 4;

/// `a` `[m, k]` times `b` `[k, n]`.
pub(super) fn product(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    if m < ROWS {
        // Few rows: `b` is read once, in its own order.
        for (row, out) in a.chunks_exact(k.max(1)).zip(out.chunks_exact_mut(n.max(1))) {
            for (x, b) in row.iter().zip(b.chunks_exact(n.max(1))) {
                out.iter_mut().zip(b).for_each(|(out, b)| *out += x * b);
            }
        }
        return out;
    }
    let mut panel = vec![[0.0; COLS]; k];
    for first in (0..n).step_by(COLS) {
        let width = COLS.min(n - first);
        for (row, panel) in panel.iter_mut().enumerate() {
            panel[..width].copy_from_slice(&b[row * n + first..row * n + first + width]);
        }
        let mut store = |row: usize, sums: &[f32; COLS]| {
            out[row * n + first..row * n + first + width].copy_from_slice(&sums[..width]);
        };
        let whole = m - m % ROWS;
        for row in (0..whole).step_by(ROWS) {
            let sums = tile::<ROWS>(&a[row * k..], &panel);
            (0..ROWS).for_each(|idx| store(row + idx, &sums[idx]));
        }
        for row in whole..m {
            store(row, &tile::<1>(&a[row * k..], &panel)[0]);
        }
    }
    out
}

/// `R` rows of `a` times the columns of `panel`.
fn tile<const R: usize>(a: &[f32], panel: &[[f32; COLS]]) -> [[f32; COLS]; R] {
    let k = panel.len();
    let rows: [&[f32]; R] = std::array::from_fn(|row| &a[row * k..(row + 1) * k]);
    let mut sums = [[0.0; COLS]; R];
    for (idx, b) in panel.iter().enumerate() {
        // Plain counting: the compiler unrolls it, and all sums stay in registers.
        for row in 0..R {
            let x = rows[row][idx];
            for col in 0..COLS {
                sums[row][col] += x * b[col];
            }
        }
    }
    sums
}

/// `MatMul`: matrices, or stacks of them of which one may be a single matrix.
pub(super) fn mat_mul(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let ((a, x), (b, y)) = (call.floats(0)?, call.floats(1)?);
    let misfit = || RunError(format!("{:?} {:?} times {:?} {:?}", a.element, a.dims, b.element, b.dims));
    let ([outer @ .., m, k], [stack @ .., k_of_b, n]) = (&a.dims[..], &b.dims[..]) else {
        return Err(misfit());
    };
    let (m, k, n) = (*m, *k, *n);
    if k != *k_of_b || a.element != b.element || !(stack.is_empty() || stack == outer) {
        return Err(misfit());
    }
    let dims = [outer, &[m, n]].concat();
    let count: usize = outer.iter().product();
    let values = match stack.is_empty() {
        true => product(x, y, [count * m, k, n]),
        false => (0..count)
            .flat_map(|idx| {
                product(&x[idx * m * k..(idx + 1) * m * k], &y[idx * k * n..(idx + 1) * k * n], [m, k, n])
            })
            .collect(),
    };
    Ok(Tensor::floats(a.element, dims, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_same_beside_others_and_alone_and_what_the_definition_says() {
        let mut state = 1;
        let mut random =
            |len: usize| (0..len).map(|_| crate::memory_weights::uniform(&mut state)).collect::<Vec<f32>>();
        for (m, k, n) in [(1, 1, 1), (3, 7, 5), (4, 16, 16), (9, 33, 40), (13, 64, 17)] {
            let (a, b) = (random(m * k), random(k * n));
            let found = product(&a, &b, [m, k, n]);
            for row in 0..m {
                assert_eq!(product(&a[row * k..(row + 1) * k], &b, [1, k, n]), found[row * n..(row + 1) * n]);
                for col in 0..n {
                    let exact: f64 =
                        (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + col])).sum();
                    assert!((f64::from(found[row * n + col]) - exact).abs() < 1e-5, "{m} {k} {n}");
                }
            }
        }
    }
}
