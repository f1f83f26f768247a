//! The largest logit of every row, found by the tasks that compute the rows while what they wrote is still in their caches: a list of one
//! token for whoever decodes greedily, without another pass over the vocabulary.

use crate::{TokenId, rows::Likeliest};

/// The largest logits of the last product.
#[derive(Debug, Default)]
pub(super) struct LargestLogits {
    /// `[num_tasks, num_rows]`, each over the task's columns.
    of_tasks: Vec<Found>,
    tokens: Vec<TokenId>,
    logits: Vec<f32>,
    /// Rows without a list: broken, or nothing in them is finite.
    is_unlisted: Vec<bool>,
}

/// The largest of some of a row's logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// −∞ for none.
    logit: f32,
    token: usize,
    is_broken: bool,
}

impl Found {
    const NOTHING: Self = Self { logit: f32::NEG_INFINITY, token: 0, is_broken: false };

    /// Of `logits`, which begin with that of `first_token`; of equal ones the first, −0 and 0 being equal.
    pub fn of(logits: &[f32], first_token: usize) -> Self {
        let mut largest = f32::NEG_INFINITY;
        let mut all_valid = true;
        // No branches, so that the compiler may use SIMD. NaN fails the comparison.
        for &logit in logits {
            all_valid &= logit < f32::INFINITY;
            largest = if logit > largest { logit } else { largest };
        }
        let token = first_token + logits.iter().position(|&logit| logit == largest).unwrap_or(0);
        Self { logit: largest, token, is_broken: !all_valid }
    }

    /// The larger of both; `self` is of lower tokens.
    fn or(self, other: Self) -> Self {
        let is_broken = self.is_broken || other.is_broken;
        let larger = if other.logit > self.logit { other } else { self };
        Self { is_broken, ..larger }
    }
}

impl LargestLogits {
    /// Room for products of `max_tasks` tasks and `max_rows` rows.
    pub fn new(max_tasks: usize, max_rows: usize) -> Self {
        Self {
            of_tasks: Vec::with_capacity(max_tasks * max_rows),
            tokens: Vec::with_capacity(max_rows),
            logits: Vec::with_capacity(max_rows),
            is_unlisted: Vec::with_capacity(max_rows),
        }
    }

    /// Nothing is found: of the last product nobody wanted it.
    pub fn clear(&mut self) {
        self.tokens.clear();
    }

    /// Room for `num_tasks` tasks, which find something of every row each.
    pub fn begin(&mut self, num_tasks: usize, num_rows: usize) -> &mut [Found] {
        self.of_tasks.clear();
        self.of_tasks.resize(num_tasks * num_rows, Found::NOTHING);
        &mut self.of_tasks
    }

    /// Puts together what the tasks, which have ascending columns, found of `num_rows` rows.
    pub fn combine(&mut self, num_rows: usize) {
        self.tokens.clear();
        self.logits.clear();
        self.is_unlisted.clear();
        for row in 0..num_rows {
            let of_tasks = self.of_tasks.iter().skip(row).step_by(num_rows);
            let found = of_tasks.fold(Found::NOTHING, |found, &task| found.or(task));
            self.tokens.push(TokenId::try_from(found.token).unwrap_or(TokenId::MAX));
            self.logits.push(found.logit);
            self.is_unlisted.push(found.is_broken || found.logit == f32::NEG_INFINITY);
        }
    }

    /// The list of row `row`, of one token.
    pub fn row(&self, row: usize) -> Option<Likeliest<'_>> {
        let token = self.tokens.get(row..row + 1)?;
        let is_listed = !self.is_unlisted[row];
        is_listed.then(|| Likeliest::new(token, &self.logits[row..row + 1], 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest(rows: &[&[f32]], task_len: usize) -> LargestLogits {
        let mut largest = LargestLogits::default();
        let num_tasks = rows[0].len().div_ceil(task_len);
        let found = largest.begin(num_tasks, rows.len());
        for task in 0..num_tasks {
            for (row, logits) in rows.iter().enumerate() {
                let first = task * task_len;
                let end = logits.len().min(first + task_len);
                found[task * rows.len() + row] = Found::of(&logits[first..end], first);
            }
        }
        largest.combine(rows.len());
        largest
    }

    #[test]
    fn the_first_of_equal_logits_is_found_whichever_tasks_have_them() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let rows: [&[f32]; 6] = [
            &[-0.0, 0.0, -1.0, 0.0, -2.0],
            &[-inf, -3.0, -2.0, -inf, -2.0],
            &[1.0, 5.0, 2.0, 3.0, 5.0],
            &[1.0, 2.0, nan, 9.0, 0.0],
            &[1.0, 2.0, 0.0, 9.0, inf],
            &[-inf; 5],
        ];
        for task_len in 1..6 {
            let largest = largest(&rows, task_len);
            let found: Vec<_> =
                (0..7).map(|row| largest.row(row).and_then(|list| list.entries().next())).collect();
            let tokens: Vec<_> = found.iter().map(|found| found.map(|(token, _)| token)).collect();
            assert_eq!(tokens, [Some(0), Some(2), Some(1), None, None, None, None], "tasks of {task_len}");
        }
    }

    #[test]
    fn a_product_that_nobody_asked_of_has_no_lists() {
        let mut largest = largest(&[&[1.0, 2.0]], 1);
        assert!(largest.row(0).is_some());
        largest.clear();
        assert!(largest.row(0).is_none());
    }
}
