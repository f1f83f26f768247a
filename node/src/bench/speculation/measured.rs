//! A real engine: every prompt by every method, in turns; outputs compared token for token.

use std::time::Duration;

use takt_eagle_spec::policy::Record;
use takt_engine::{TokenId, backend::Backend, draft::DraftManifest, engine::MAX_TREE_NODES};

use super::{
    SpeculationError, median,
    method::Method,
    player::Player,
    prompts::TokenPrompt,
    report::{AgainstPlain, CostRow, Report, method_rows, task_rows},
    tally::{Sums, Tally},
};
use crate::{
    calibrate::{Effort, grid_of, measure},
    clock::MonotonicClock,
    random::SplitMix64,
    scheduler::cost_table::{CostTable, Grid},
};

/// Enough for medians; the policy goes on learning from its own rounds.
const EFFORT: Effort = Effort { num_samples: 32, most: Duration::from_secs(4), idle_gap: Duration::ZERO };

/// What is measured.
#[derive(Debug, Clone)]
pub struct Course {
    /// Answered in every pass by every method.
    pub prompts: Vec<TokenPrompt>,
    /// What ends an answer.
    pub eos: Vec<TokenId>,
    /// Longest answer.
    pub max_tokens: usize,
    /// Times that all prompts are answered.
    pub num_passes: usize,
}

impl Course {
    /// Tokens a lane must hold.
    #[must_use]
    pub fn lane_capacity(&self) -> usize {
        self.longest().saturating_add(MAX_TREE_NODES + 1)
    }

    /// Tokens of the longest prompt with the longest answer.
    fn longest(&self) -> usize {
        let longest = self.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        longest.saturating_add(self.max_tokens)
    }

    /// Whether it fits into a model that was made for `max_context` tokens.
    ///
    /// # Errors
    /// [`SpeculationError::Prompts`] naming the longest prompt.
    pub fn check(&self, max_context: usize) -> Result<(), SpeculationError> {
        let Some(longest) = self.prompts.iter().max_by_key(|prompt| prompt.tokens.len()) else {
            return Err(SpeculationError::Prompts("no prompts: expected at least one".into()));
        };
        if self.lane_capacity() > max_context {
            return Err(SpeculationError::Prompts(format!(
                "prompt {:?} has {} tokens; with {} of the answer and {} for trees that is {}, the model was made for {max_context}: use a smaller --max-tokens or shorter prompts",
                longest.label,
                longest.tokens.len(),
                self.max_tokens,
                MAX_TREE_NODES + 1,
                self.lane_capacity()
            )));
        }
        Ok(())
    }

    /// Tasks in the order they come, with the number of their prompts; and the task of each prompt.
    fn tasks(&self) -> (Vec<(String, usize)>, Vec<usize>) {
        let mut tasks: Vec<(String, usize)> = Vec::new();
        let task_of = |prompt: &TokenPrompt| match tasks.iter().position(|(task, _)| *task == prompt.task) {
            Some(idx) => {
                tasks[idx].1 += 1;
                idx
            }
            None => {
                tasks.push((prompt.task.clone(), 1));
                tasks.len() - 1
            }
        };
        let of_prompts = self.prompts.iter().map(task_of).collect();
        (tasks, of_prompts)
    }
}

/// Answers the prompts of `course` on `backend` by all methods, for each prompt in a new random order, so that no method always comes after the
/// same, or when the machine is warmest. `progress` is told how much of everything is done; when it says false, all ends.
///
/// # Errors
/// [`SpeculationError::Differs`] when an answer is not plain decoding's; whatever the backend reports.
pub fn run(
    backend: &mut dyn Backend,
    draft: Option<&DraftManifest>,
    course: &Course,
    model: String,
    mut progress: impl FnMut(f64) -> bool,
) -> Result<Report, SpeculationError> {
    let facts = backend.capabilities().clone();
    let has_head = backend.draft_facts().is_some();
    let methods = Method::all(has_head, true, facts.max_logits_rows.min(facts.max_step_tokens));
    let table = calibrate(backend, course.longest(), || progress(0.0))?;
    let record = draft.and_then(|draft| draft.record.as_ref());
    let record = record.map(|record| Record { acceptance: record.acceptance.clone() });
    let mut player = Player::new(backend, table, record, (course.eos.clone(), course.max_tokens))?;
    let (tasks, task_of) = course.tasks();
    let mut tally = Tally::new(methods.len(), course.num_passes, tasks.len());
    let mut notes = Vec::new();
    let num_all = (course.num_passes * course.prompts.len()).max(1) as f64;
    let (mut order, mut random) = ((0..methods.len()).collect::<Vec<usize>>(), SplitMix64(5));
    for pass in 0..course.num_passes {
        player.begin_pass();
        for (prompt_idx, prompt) in course.prompts.iter().enumerate() {
            shuffle(&mut order, &mut random);
            let sums = play_all(&mut player, &methods, &order, (prompt_idx, prompt))?;
            for (method_idx, sums) in sums.iter().enumerate() {
                tally.cell(method_idx, pass, task_of[prompt_idx]).add(sums);
            }
            if !progress((pass * course.prompts.len() + prompt_idx + 1) as f64 / num_all) {
                return Err(SpeculationError::Interrupted);
            }
        }
        if let Some(collapse) = player.collapse().filter(|_| notes.is_empty()) {
            notes.push(format!("the policy stopped drafting: {collapse}"));
        }
    }
    if !has_head {
        notes.push(
            "the engine has no draft head: only plain decoding and prompt lookup (build it with --draft DIR)"
                .into(),
        );
    }
    let rows = method_rows(&methods, &tally);
    let prompt_lens = course.prompts.iter().map(|prompt| prompt.tokens.len() as f64);
    Ok(Report {
        model,
        acceptance: "measured",
        profile: None,
        backend: facts.backend,
        device: facts.device,
        threads: facts.num_threads,
        has_head,
        num_prompts: course.prompts.len(),
        num_passes: course.num_passes,
        num_tokens: tally.passes(0, |_| true).first().map_or(0, |sums| sums.num_tokens),
        context_len: median(prompt_lens) as usize, // a length
        identical: Some(true),
        tasks: task_rows(&methods, &tasks, &tally),
        adaptive_vs_plain: AgainstPlain::of(&rows),
        methods: rows,
        costs: CostRow::of(player.costs()),
        notes,
    })
}

/// One prompt by every method; plain decoding may come anywhere, so answers are compared at the end.
fn play_all(
    player: &mut Player<'_>,
    methods: &[Method],
    order: &[usize],
    (prompt_idx, prompt): (usize, &TokenPrompt),
) -> Result<Vec<Sums>, SpeculationError> {
    let read = player.read(&prompt.tokens)?;
    let mut answers: Vec<Vec<TokenId>> = vec![Vec::new(); methods.len()];
    let mut sums = vec![Sums::default(); methods.len()];
    for &idx in order {
        player.play(&read, methods[idx], &mut sums[idx])?;
        answers[idx] = player.answer().to_vec();
    }
    player.forget(read);
    for (method, answer) in methods.iter().zip(&answers) {
        check_same(answer, &answers[0], *method, (prompt_idx, prompt))?;
    }
    Ok(sums)
}

/// Fisher and Yates.
fn shuffle(order: &mut [usize], random: &mut SplitMix64) {
    for end in (1..order.len()).rev() {
        order.swap(end, random.below(end + 1));
    }
}

fn check_same(
    found: &[TokenId],
    expected: &[TokenId],
    method: Method,
    (prompt_idx, prompt): (usize, &TokenPrompt),
) -> Result<(), SpeculationError> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    Err(SpeculationError::Differs {
        prompt_idx: prompt_idx + 1,
        prompt: prompt.label.clone(),
        method: method.name(),
        at,
        found: found.get(at).copied(),
        expected: expected.get(at).copied(),
    })
}

/// What decode steps, verify rounds and draft levels cost here, at the longest context of the answers. Slices are not needed: the policy never
/// asks for them.
fn calibrate(
    backend: &mut dyn Backend,
    context_len: usize,
    mut progress: impl FnMut() -> bool,
) -> Result<CostTable, SpeculationError> {
    let mut grid = Grid { prefill_sizes: vec![1], ..grid_of(backend, 1) };
    // Below the lane's capacity: a head cannot draft at the very end of a lane, so a level there costs nothing.
    grid.context_lens.retain(|&len| len < context_len);
    grid.context_lens.push(context_len);
    match measure(backend, &MonotonicClock, &grid, EFFORT, |_| progress())? {
        Some(costs) => Ok(CostTable::new(grid, &costs)),
        None => Err(SpeculationError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(label: &str, task: &str, len: usize) -> TokenPrompt {
        TokenPrompt { task: task.into(), label: label.into(), tokens: vec![1; len] }
    }

    #[test]
    fn a_changed_answer_is_reported_with_its_prompt_and_place() {
        let asked = prompt("Where are you?", "question", 3);
        let check =
            |found: &[TokenId]| check_same(found, &[5, 6, 7], Method::all(false, true, 64)[1], (4, &asked));
        assert!(check(&[5, 6, 7]).is_ok());
        let error = check(&[5, 9, 7]).unwrap_err().to_string();
        for word in
            ["prompt 5", "Where are you?", "lookup chain of 2", "Some(9)", "Some(6)", "after 1 tokens"]
        {
            assert!(error.contains(word), "{word} not in {error}");
        }
        assert!(check(&[5, 6]).unwrap_err().to_string().contains("None"));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_the_longest_prompt() {
        let prompts = vec![prompt("short", "a", 3), prompt("long", "b", 90), prompt("other", "a", 4)];
        let course = Course { prompts, eos: Vec::new(), max_tokens: 10, num_passes: 1 };
        assert_eq!(course.tasks(), (vec![("a".into(), 2), ("b".into(), 1)], vec![0, 1, 0]));
        course.check(165).unwrap();
        let error = course.check(164).unwrap_err().to_string();
        assert!(error.contains("\"long\" has 90 tokens") && error.contains("--max-tokens"), "{error}");
        let none = Course { prompts: Vec::new(), ..course };
        assert!(none.check(164).is_err());
    }
}
