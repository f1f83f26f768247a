//! When the device fails while a head is attached or drafts: it is told, nothing stays behind, and another can be opened.

use std::time::Duration;

use takt_engine::{
    EngineError,
    backend::{
        Backend,
        cuda::{CudaBackend, CudaOptions},
    },
    dir::DraftDir,
    draft::{DraftPlan, DraftRow, DraftSource, DraftSpec},
    kv::{KvKind, LaneId},
    quant::{MatrixData, MatrixView},
    step::{LogitsWanted, StepPlan},
};
use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
    memory::DeviceBuffer,
};
use takt_tests::{
    backends::run_slices,
    eagle::{chain_logits, read},
};

use super::{A, B, Fixture, attach, step, step_tree};
use crate::{
    emulator::driver::Device,
    models::{emulated, options},
};

const TEXT: [u32; 9] = [5, 6, 7, 8, 9, 10, 11, 12, 13];

/// Few shapes, so that opening is quick.
fn small() -> CudaOptions {
    CudaOptions { num_lanes: 2, max_step_tokens: 16, max_logits_rows: 16, ..options(KvKind::Int8) }
}

fn root() -> DraftPlan {
    DraftPlan { rows: vec![DraftRow { lane: A, parent: None, token: 3 }], top_k: 2, wants_logits: false }
}

#[track_caller]
fn nothing_is_left(device: &Device) {
    assert_eq!(device.report().leaks(), Vec::<String>::new());
}

#[test]
fn memory_that_runs_out_at_any_allocation_leaves_the_model_as_it_was() {
    let test = "draft::failures::memory_that_runs_out_at_any_allocation_leaves_the_model_as_it_was";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.without_head(&small());
        let expected = run_slices(&mut backend, A, &TEXT, 9);
        let kv_bytes = backend.capabilities().kv_bytes;
        let before = device.report();
        let mut num_refused = 0;
        for n in 1.. {
            device.fail_allocation(n);
            match attach(&mut backend, &fixture.dir) {
                Ok(()) => break,
                Err(error) => assert!(error.is_capacity(), "allocation {n}: {error}"),
            }
            num_refused += 1;
            let now = device.report();
            for what in ["device_allocations", "device_bytes", "host_allocations"] {
                assert_eq!(now.value(what), before.value(what), "{what} after allocation {n}");
            }
            assert_eq!((backend.draft_facts(), backend.capabilities().kv_bytes), (None, kv_bytes));
            backend.truncate(A, 0).unwrap();
            assert_eq!(run_slices(&mut backend, A, &TEXT, 9), expected, "allocation {n}");
        }
        assert!(num_refused >= 8, "only {num_refused} allocations");
        device.fail_allocation(0);
        assert!(backend.capabilities().kv_bytes > kv_bytes);
        assert_eq!(backend.committed_len(A), 0, "a head begins with empty lanes");
        read(&mut backend, &TEXT, 9);
        let drafted = chain_logits(&mut backend, A, &[3, 4]);
        // Another one in its place.
        attach(&mut backend, &fixture.dir).unwrap();
        read(&mut backend, &TEXT, 9);
        assert!(chain_logits(&mut backend, A, &[3, 4]) == drafted);
        // A snapshot that finds no memory for the head's part leaves none of the model's.
        let with_head = device.report().value("device_allocations");
        step(&mut backend, A, &[1]);
        for n in 1..=3 {
            device.fail_allocation(n);
            assert!(backend.save_snapshot(A, 10).unwrap_err().is_capacity(), "allocation {n}");
            assert_eq!(device.report().value("device_allocations"), with_head);
        }
        device.fail_allocation(0);
        let snapshot = backend.save_snapshot(A, 10).unwrap();
        backend.drop_snapshot(snapshot);
        assert_eq!(device.report().value("device_allocations"), with_head);
        drop(backend);
        nothing_is_left(device);
    });
}

#[test]
fn a_head_that_does_not_fit_is_refused_with_all_sizes_before_anything_is_allocated() {
    let test =
        "draft::failures::a_head_that_does_not_fit_is_refused_with_all_sizes_before_anything_is_allocated";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.without_head(&small());
        // Somebody else takes nearly all that is left.
        let other = Context::open(&device::probe().unwrap()[0], Share::Priority).unwrap().0;
        let free = other.memory_bytes().unwrap().0;
        let taken = DeviceBuffer::new(&other, free - (17 << 20), "a neighbour").unwrap();
        let before = device.report();
        let error = attach(&mut backend, &fixture.dir).unwrap_err();
        assert!(error.is_capacity(), "{error}");
        let text = error.to_string();
        for part in
            ["the draft head takes ", "weights ", "KV cache ", "workspace ", " beside the model", " are free"]
        {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
        let calls = device.report().calls_since(&before);
        assert!(!calls.contains_key("cuMemAlloc_v2") && !calls.contains_key("cuMemHostAlloc"), "{calls:?}");
        drop(taken);
        attach(&mut backend, &fixture.dir).unwrap();
        drop(backend);
        let kv_bytes = fixture.without_head(&small()).capabilities().kv_bytes;
        let mut limited =
            fixture.without_head(&CudaOptions { max_kv_bytes: Some(kv_bytes + 100), ..small() });
        let error = attach(&mut limited, &fixture.dir).unwrap_err().to_string();
        assert!(
            error.contains("the draft head's int8 KV cache") && error.contains("100 are left"),
            "{error}"
        );
    });
}

/// Every way to a device that is lost, with a head at work: the `n`-th kernel from the call on.
#[track_caller]
fn is_lost(
    fixture: &Fixture,
    fail: impl Fn(),
    limit: Duration,
    reason: &str,
    work: impl Fn(&mut dyn Backend),
) {
    let options = CudaOptions { step_limit: limit, ..small() };
    let mut backend = fixture.with_head(&options);
    read(&mut backend, &TEXT, 9);
    work(&mut backend);
    fail();
    let error = backend.draft(&root()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
    let again = backend.draft(&root()).map(|_| ()).unwrap_err().to_string();
    assert!(again.contains("opened anew"), "{again}");
    let mut plan = StepPlan::default();
    plan.push(B, &[3], LogitsWanted::Last);
    assert!(backend.run_step(&plan).is_err(), "a lost context does not come back");
}

#[test]
fn a_kernel_that_faults_or_hangs_in_a_draft_ends_the_backend_and_another_can_be_opened() {
    let test = "draft::failures::a_kernel_that_faults_or_hangs_in_a_draft_ends_the_backend_and_another_can_be_opened";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let expected = {
            let mut backend = fixture.with_head(&small());
            read(&mut backend, &TEXT, 9);
            chain_logits(&mut backend, A, &[3, 4])
        };
        let limit = Duration::from_secs(60);
        // Among what is read for the root, and in the level.
        for n in [2, 14] {
            is_lost(&fixture, || device.fail_launch(n), limit, "opened anew", |_| {});
        }
        // Long enough for what goes well on a busy machine.
        let short = Duration::from_secs(3);
        is_lost(&fixture, || device.hang_launch(12), short, "did not finish within", |_| {});
        device.fail_launch(0);
        device.hang_launch(0);
        let mut backend = fixture.with_head(&small());
        read(&mut backend, &TEXT, 9);
        assert!(chain_logits(&mut backend, A, &[3, 4]) == expected);
        drop(backend);
    });
}

#[test]
fn a_fault_while_a_step_is_read_along_ends_the_backend_and_commits_nothing() {
    let test = "draft::failures::a_fault_while_a_step_is_read_along_ends_the_backend_and_commits_nothing";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.with_head(&small());
        read(&mut backend, &TEXT, 9);
        let before = device.report().value("launches");
        step(&mut backend, A, &[1, 2, 3]);
        let num_launches = device.report().value("launches") - before;
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[4, 5, 6], LogitsWanted::Last);
        // The last one is of reading along.
        device.fail_launch(num_launches);
        let error = backend.run_step(&plan).unwrap_err().to_string();
        assert!(error.contains("opened anew"), "{error}");
        assert_eq!(backend.committed_len(A), 12);
        assert!(backend.keep(A, &[0]).is_err() && backend.truncate(A, 0).is_err());
        assert!(backend.save_snapshot(A, 3).is_err());
    });
}

#[test]
fn a_head_that_fails_at_the_last_leaves_the_one_of_before_and_what_was_captured() {
    let test =
        "draft::failures::a_head_that_fails_at_the_last_leaves_the_one_of_before_and_what_was_captured";
    const INSTANTIATE: &str = "cuGraphInstantiateWithFlags";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let num_graphs = {
            let mut backend = fixture.without_head(&small());
            let before = device.report().calls(INSTANTIATE);
            attach(&mut backend, &fixture.dir).unwrap();
            device.report().calls(INSTANTIATE) - before
        };
        let mut backend = fixture.without_head(&small());
        backend.capture(&[0, 1]).unwrap();
        let features = |backend: &mut CudaBackend| {
            let mut plan = StepPlan::default();
            plan.push(B, &[3, 4], LogitsWanted::Last);
            let features = backend.run_step(&plan).unwrap().features().to_vec();
            backend.truncate(B, 0).unwrap();
            features
        };
        let expected = features(&mut backend);
        assert!(!expected.is_empty());
        device.fail_call(INSTANTIATE, num_graphs, 2);
        assert!(attach(&mut backend, &fixture.dir).unwrap_err().is_capacity());
        assert_eq!(backend.draft_facts(), None);
        assert!(features(&mut backend) == expected);

        attach(&mut backend, &fixture.dir).unwrap();
        read(&mut backend, &TEXT, 9);
        let drafted = chain_logits(&mut backend, A, &[3, 4]);
        let kv_bytes = backend.capabilities().kv_bytes;
        device.fail_call(INSTANTIATE, num_graphs, 2);
        assert!(attach(&mut backend, &fixture.dir).unwrap_err().is_capacity());
        assert_eq!(backend.capabilities().kv_bytes, kv_bytes);
        assert!(!backend.can_draft(A), "lanes are empty");
        read(&mut backend, &TEXT, 9);
        assert!(chain_logits(&mut backend, A, &[3, 4]) == drafted);
    });
}

/// What is in the stream reads memory that the next step writes, so a call that is refused behind it does not end the wait for it; and what was
/// noted as read before it was is not believed.
#[test]
fn a_graph_that_is_refused_behind_others_is_waited_for_and_leaves_the_lane_cold() {
    let test =
        "draft::failures::a_graph_that_is_refused_behind_others_is_waited_for_and_leaves_the_lane_cold";
    const OUT_OF_MEMORY: i32 = 2;
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let mut backend = fixture.with_head(&small());
        read(&mut backend, &TEXT, 9);
        let expected = chain_logits(&mut backend, A, &[3, 4]);
        let num_waits = || device.report().calls("cuEventRecord");
        let mut plan = StepPlan::default();
        plan.push(A, &[1, 2, 3], LogitsWanted::Last);
        // The step's own, which leaves nothing to wait for; the copy of its row; what is read of it.
        for (call, n, waits) in
            [("cuGraphLaunch", 1, 0), ("cuMemcpyDtoHAsync_v2", 1, 1), ("cuGraphLaunch", 2, 1)]
        {
            let before = num_waits();
            device.fail_call(call, n, OUT_OF_MEMORY);
            backend.run_step(&plan).map(|_| ()).unwrap_err();
            assert_eq!(num_waits() - before, waits, "{call} {n}");
            assert_eq!(backend.committed_len(A), 9);
            backend.truncate(A, 9).unwrap();
            assert!(!backend.can_draft(A), "{call} {n}");
            backend.truncate(A, 0).unwrap();
            read(&mut backend, &TEXT, 9);
        }
        // What is read for a root, and the level behind it.
        for (n, waits) in [(1, 0), (2, 1)] {
            let before = num_waits();
            device.fail_call("cuGraphLaunch", n, OUT_OF_MEMORY);
            backend.draft(&root()).map(|_| ()).unwrap_err();
            assert_eq!(num_waits() - before, waits, "launch {n} of a draft");
            assert!(!backend.can_draft(A));
            backend.truncate(A, 0).unwrap();
            read(&mut backend, &TEXT, 9);
        }
        assert!(chain_logits(&mut backend, A, &[3, 4]) == expected);
        // And of the path that is kept, behind a copy.
        step_tree(&mut backend, A, &[3, 4], &[0, 0]);
        let before = num_waits();
        device.fail_call("cuGraphLaunch", 1, OUT_OF_MEMORY);
        backend.keep(A, &[0, 1]).unwrap_err();
        assert_eq!(num_waits() - before, 1);
        assert!(!backend.can_draft(A));
        backend.truncate(A, 9).unwrap();
        assert!(!backend.can_draft(A));
    });
}

/// A head of which one matrix is missing, or stored as no other beside it is.
struct Damaged<'a> {
    head: &'a DraftDir,
    name: &'static str,
    replacement: Option<(Vec<u8>, Vec<u8>)>,
}

impl DraftSource for Damaged<'_> {
    fn matrix(&self, name: &str) -> takt_engine::Result<MatrixView<'_>> {
        let view = self.head.matrix(name)?;
        match &self.replacement {
            _ if name != self.name => Ok(view),
            None => Err(EngineError::Tensor { name: name.into(), fact: "missing".into() }),
            Some((codes, scales)) => Ok(MatrixView { data: MatrixData::Fp8 { codes, scales }, ..view }),
        }
    }

    fn vector(&self, name: &str) -> takt_engine::Result<Vec<f32>> {
        self.head.vector(name)
    }

    fn target_tokens(&self) -> takt_engine::Result<Vec<u32>> {
        self.head.target_tokens()
    }
}

#[test]
fn a_head_that_does_not_hold_is_refused_by_name_and_lanes_keep_what_they_hold() {
    let test = "draft::failures::a_head_that_does_not_hold_is_refused_by_name_and_lanes_keep_what_they_hold";
    emulated(test).run(|device| {
        let fixture = Fixture::new(0);
        let head = fixture.dir.draft().unwrap();
        let spec = &head.manifest().spec;
        let mut backend = fixture.without_head(&small());
        let expected = run_slices(&mut backend, A, &TEXT, 9);
        let before = device.report().value("device_allocations");
        let foreign = DraftSpec { captured: [0, 1, 99], ..spec.clone() };
        let k_proj = head.matrix("layer.self_attn.k_proj").unwrap();
        let fp8 = (vec![0x38; k_proj.num_rows * k_proj.num_cols], vec![0; 4 * k_proj.num_rows]);
        let sources = [
            (spec, "layer.mlp.down_proj", None, "missing"),
            (spec, "layer.self_attn.k_proj", Some(fp8), "fp8 weights, those beside it are bf16"),
            (&foreign, "", None, "features at the input of layer 99"),
        ];
        for (spec, name, replacement, reason) in sources {
            let error =
                backend.attach_draft(spec, &Damaged { head, name, replacement }).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(reason), "{error}");
            assert_eq!(device.report().value("device_allocations"), before, "{reason}");
            assert_eq!((backend.draft_facts(), backend.committed_len(A)), (None, 9));
        }
        backend.truncate(A, 0).unwrap();
        assert_eq!(run_slices(&mut backend, A, &TEXT, 9), expected);
    });
}
