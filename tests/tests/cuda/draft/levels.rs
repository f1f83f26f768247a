//! What a level asks of the driver, and what it refuses.

use takt_eagle_spec::{
    drafter::HeadDrafter,
    tree::{TreeShape, grow},
};
use takt_engine::{
    TokenId,
    backend::Backend,
    dir::DraftDir,
    draft::{DraftPlan, DraftRow, DraftSource},
    kv::{KvKind, LaneId},
    quant::{MatrixData, MatrixView},
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::eagle::{chain_logits, read};

use super::{A, B, Fixture, step};
use crate::models::{emulated, on_device, options};

fn row(lane: LaneId, parent: Option<usize>, token: u32) -> DraftRow {
    DraftRow { lane, parent, token }
}

#[test]
fn a_level_is_one_wait_and_allocates_nothing_and_only_tokens_and_their_likelihoods_come_back() {
    let test = "draft::levels::a_level_is_one_wait_and_allocates_nothing_and_only_tokens_and_their_likelihoods_come_back";
    emulated(test).run(|device| {
        let mut backend = Fixture::new(0).with_head(&options(KvKind::Bf16));
        read(&mut backend, &[5, 6, 7, 8, 9], 96);
        let usual = ["cuGraphLaunch", "cuEventRecord", "cuEventQuery", "cuCtxSetCurrent"];
        let mut drafted = |rows: Vec<DraftRow>, num_graphs: u64| {
            let before = device.report();
            let plan = DraftPlan { rows, top_k: 4, wants_logits: false };
            assert!(backend.draft(&plan).unwrap().logits.is_empty());
            let calls = device.report().calls_since(&before);
            let count = |name: &str| calls.get(name).copied().unwrap_or(0);
            assert_eq!((count("cuGraphLaunch"), count("cuEventRecord")), (num_graphs, 1), "{calls:?}");
            assert!(calls.keys().all(|name| usual.contains(&name.as_str())), "{calls:?}");
        };
        // What waits is read before the root.
        drafted(vec![row(A, None, 3)], 2);
        drafted(vec![row(A, Some(0), 4), row(A, Some(0), 5), row(A, Some(0), 6), row(A, Some(0), 7)], 1);
        drafted(vec![row(A, Some(1), 4)], 1);
        drafted(vec![row(A, None, 9)], 1);
        // A step that reads along is two graphs and one wait; one that does not is one graph.
        let mut stepped = |tokens: &[u32], num_graphs: u64| {
            let mut plan = StepPlan::default();
            plan.push(A, tokens, LogitsWanted::Last);
            // Neither a list, which is another graph, nor a row.
            plan.last_needs(Detail::OnDemand);
            let before = device.report();
            assert!(backend.run_step(&plan).unwrap().features().is_empty());
            let calls = device.report().calls_since(&before);
            let count = |name: &str| calls.get(name).copied().unwrap_or(0);
            assert_eq!((count("cuGraphLaunch"), count("cuEventRecord")), (num_graphs, 1), "{calls:?}");
            assert!(calls.keys().all(|name| usual.contains(&name.as_str())), "{calls:?}");
        };
        stepped(&[3], 1);
        stepped(&[1, 2, 3, 4], 2);
        (0..6).for_each(|token| stepped(&[token], 1));
        stepped(&[9], 2);
    });
}

#[test]
fn rows_of_a_tree_see_their_ancestors_only_in_whatever_levels_and_beside_whomever() {
    let test =
        "draft::levels::rows_of_a_tree_see_their_ancestors_only_in_whatever_levels_and_beside_whomever";
    on_device(test).run(|_| {
        for (kv, idx) in [(KvKind::Bf16, 0), (KvKind::Int8, 1)] {
            let mut backend = Fixture::new(idx).with_head(&options(kv));
            let backend = &mut backend;
            let text: Vec<u32> = (0..70).map(|i| (i * 37 + 5) % 600).collect();
            read(backend, &text, 96);
            let mut along = |chain: &[u32]| chain_logits(backend, A, chain).pop().unwrap();
            let expected = [
                along(&[7]),
                along(&[7, 11]),
                along(&[7, 12]),
                along(&[7, 12, 13]),
                along(&[7, 11, 14]),
                along(&[7, 12, 15]),
                along(&[7, 12, 13, 16]),
            ];
            step(backend, B, &text[..9]);
            let levels = [
                vec![row(A, None, 7)],
                vec![row(A, Some(0), 11), row(A, Some(0), 12)],
                // Rows of one lane around another's.
                vec![row(A, Some(2), 13), row(B, None, 5), row(A, Some(1), 14), row(A, Some(2), 15)],
                vec![row(B, Some(0), 5), row(A, Some(3), 16)],
            ];
            let mut found = Vec::new();
            for rows in levels {
                let plan = DraftPlan { rows: rows.clone(), top_k: 3, wants_logits: true };
                let output = backend.draft(&plan).unwrap();
                let len = output.logits.len() / rows.len();
                let of_lane = rows.iter().zip(output.logits.chunks(len)).filter(|(row, _)| row.lane == A);
                found.extend(of_lane.map(|(_, logits)| logits.to_vec()));
            }
            assert_eq!(found.len(), expected.len());
            for (node, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(found == expected, "{kv}: row {node}");
            }
        }
    });
}

#[test]
fn proposals_are_the_likeliest_of_the_logits_as_tokens_of_the_target() {
    on_device("draft::levels::proposals_are_the_likeliest_of_the_logits_as_tokens_of_the_target").run(|_| {
        let fixture = Fixture::new(1);
        let mut backend = fixture.with_head(&options(KvKind::Bf16));
        let targets = fixture.dir.draft().unwrap().target_tokens().unwrap();
        read(&mut backend, &[5, 6, 7, 8, 9], 96);
        for top_k in [1, 2, 3, 8, 11, 64] {
            let plan = DraftPlan { rows: vec![row(A, None, 3)], top_k, wants_logits: true };
            let output = backend.draft(&plan).unwrap();
            assert_eq!(output.num_proposals, top_k);
            let mut order: Vec<usize> = (0..output.logits.len()).collect();
            order.sort_by(|&a, &b| output.logits[b].total_cmp(&output.logits[a]));
            let sum: f64 = output.logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let found: Vec<_> = output.row(0).collect();
            assert_eq!(found.len(), top_k);
            for ((token, log_prob), &expected) in found.iter().zip(&order) {
                assert_eq!(*token, targets[expected], "top {top_k}");
                let wanted = f64::from(output.logits[expected]) - sum.ln();
                assert!((f64::from(*log_prob) - wanted).abs() < 1e-4, "{log_prob}, {wanted}");
            }
        }
    });
}

/// A head whose output layer has grown beyond all numbers.
struct Overflown<'a> {
    head: &'a DraftDir,
    lm_head: Vec<u8>,
}

impl DraftSource for Overflown<'_> {
    fn matrix(&self, name: &str) -> takt_engine::Result<MatrixView<'_>> {
        let view = self.head.matrix(name)?;
        Ok(if name == "lm_head" {
            MatrixView { data: MatrixData::Bf16(&self.lm_head), ..view }
        } else {
            view
        })
    }

    fn vector(&self, name: &str) -> takt_engine::Result<Vec<f32>> {
        self.head.vector(name)
    }

    fn target_tokens(&self) -> takt_engine::Result<Vec<TokenId>> {
        self.head.target_tokens()
    }
}

#[test]
fn numbers_that_are_not_finite_make_proposals_that_are_never_likely_and_trees_all_the_same() {
    let test = "draft::levels::numbers_that_are_not_finite_make_proposals_that_are_never_likely_and_trees_all_the_same";
    on_device(test).run(|_| {
        let fixture = Fixture::new(0);
        let head = fixture.dir.draft().unwrap();
        let view = head.matrix("lm_head").unwrap();
        let (num_rows, num_cols) = (view.num_rows, view.num_cols);
        for is_partly in [false, true] {
            // BF16's infinity, in all rows or in one.
            let one = |at: usize| if is_partly && at / num_cols != 3 { 0x3f80_u16 } else { 0x7f80 };
            let lm_head = (0..num_rows * num_cols).flat_map(|at| one(at).to_le_bytes()).collect();
            let mut backend = fixture.without_head(&options(KvKind::Bf16));
            backend.attach_draft(&head.manifest().spec, &Overflown { head, lm_head }).unwrap();
            read(&mut backend, &[5, 6, 7, 8, 9], 96);
            let plan = DraftPlan { rows: vec![row(A, None, 3)], top_k: 4, wants_logits: false };
            let found: Vec<_> = backend.draft(&plan).unwrap().row(0).collect();
            assert_eq!(found.len(), 4);
            assert!(
                found.iter().all(|(token, log_prob)| *token < 640 && *log_prob == f32::NEG_INFINITY),
                "{found:?}"
            );
            let shape = TreeShape { top_k: 3, num_levels: 3, num_nodes: 8 };
            let tree = grow(&mut HeadDrafter::new(&mut backend, &[A]), 7, shape).unwrap();
            assert_eq!(tree.tokens[0], 7);
            step(&mut backend, A, &[1]);
        }
    });
}

#[test]
fn drafts_that_cannot_be_are_refused_and_change_nothing() {
    on_device("draft::levels::drafts_that_cannot_be_are_refused_and_change_nothing").run(|_| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.with_head(&options(KvKind::Bf16));
        let refusal = |backend: &mut dyn Backend, rows: Vec<DraftRow>, top_k| {
            let plan = DraftPlan { rows, top_k, wants_logits: false };
            backend.draft(&plan).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refusal(&mut backend, vec![row(A, None, 1)], 1).contains("has not read"));
        read(&mut backend, &[5, 6, 7, 8, 9], 96);
        for (rows, top_k, word) in [
            (vec![], 1, "0 rows"),
            (vec![row(A, None, 1)], 0, "0 proposals"),
            (vec![row(A, None, 1)], 65, "65 proposals"),
            (vec![row(A, None, 640)], 1, "outside the vocabulary of 640"),
            (vec![row(A, Some(0), 1)], 1, "was not drafted"),
            (vec![row(A, None, 1), row(A, Some(0), 2)], 1, "was not drafted before"),
            (vec![row(A, None, 1), row(A, None, 2)], 1, "after other rows"),
            (vec![row(LaneId(9), None, 1)], 1, "does not exist"),
        ] {
            let error = refusal(&mut backend, rows, top_k);
            assert!(error.contains(word), "{word}: {error}");
        }
        let expected = chain_logits(&mut backend, A, &[7]);
        assert!(refusal(&mut backend, vec![row(A, Some(3), 1)], 1).contains("row 3 has children"));
        assert!(chain_logits(&mut backend, A, &[7]) == expected);
        assert!(backend.capture(&[0]).unwrap_err().to_string().contains("for the draft head already"));
        let mut plain = fixture.without_head(&options(KvKind::Bf16));
        let error = refusal(&mut plain, vec![row(A, None, 1)], 1);
        assert!(error.contains("the cuda backend has no draft head"), "{error}");
        assert_eq!(plain.draft_facts(), None);
    });
}

#[test]
fn the_widest_levels_and_most_rows_of_a_lane_fit() {
    on_device("draft::levels::the_widest_levels_and_most_rows_of_a_lane_fit").run(|_| {
        let mut backend = Fixture::new(0).with_head(&options(KvKind::Bf16));
        read(&mut backend, &[5, 6, 7, 8, 9], 96);
        let expected = chain_logits(&mut backend, A, &[7, 40]).pop().unwrap();
        chain_logits(&mut backend, A, &[7]);
        let rows: Vec<_> = (0..64).map(|token| row(A, Some(0), token)).collect();
        let plan = DraftPlan { rows, top_k: 64, wants_logits: true };
        let output = backend.draft(&plan).unwrap();
        let len = output.logits.len() / 64;
        assert!(output.logits[40 * len..][..len] == expected);
        let rows: Vec<_> = (0..63).map(|number| row(A, Some(number + 1), 5)).collect();
        backend.draft(&DraftPlan { rows, top_k: 2, wants_logits: false }).unwrap();
        let one_more = DraftPlan { rows: vec![row(A, Some(0), 1)], top_k: 1, wants_logits: false };
        assert!(backend.draft(&one_more).unwrap_err().to_string().contains("more than 128 rows"));
        let shape = TreeShape { top_k: 8, num_levels: 6, num_nodes: 60 };
        let tree = grow(&mut HeadDrafter::new(&mut backend, &[A]), 7, shape).unwrap();
        assert_eq!(tree.tokens.len(), 60);
    });
}
