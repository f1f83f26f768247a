use super::*;
use crate::{dir::PlanActivations, dir::PlanRole, dir::PlanVersion, shapes::decoder_spec};

fn spec(windows: &[Option<usize>]) -> DecoderSpec {
    DecoderSpec {
        num_layers: 2,
        windows: windows.to_vec(),
        vocab_size: 320,
        ..decoder_spec("llama-3.2-1b").unwrap()
    }
}

fn entry(form: PlanForm, captured: &[usize]) -> PlanEntry {
    PlanEntry {
        file: "plans/trt-10.16-sm_110a.plan".into(),
        size_bytes: 1,
        blake3: "0".repeat(64),
        role: PlanRole::Decoder,
        tensorrt: PlanVersion { major: 10, minor: 16 },
        sm: "sm_110a".into(),
        device: "a board".into(),
        weights_blake3: "a".repeat(64),
        form,
        compute: PlanCompute::Bf16,
        activations: PlanActivations::Plain,
        kv: PlanKv::Plain,
        num_lanes: 2,
        lane_capacity: 512,
        lane_rows: 577,
        max_prefill: 256,
        max_tree: 65,
        captured: captured.to_vec(),
        stripped: false,
        streams_weights: false,
        refittable: None,
        timed_in_green_context: None,
    }
}

/// The tensors of a plan as it should be.
fn tensors(spec: &DecoderSpec, entry: &PlanEntry, integers: DataType) -> Vec<TensorInfo> {
    let tensor = |name: &str, is_input, data_type, shape: &[Option<usize>]| TensorInfo {
        name: name.into(),
        is_input,
        data_type,
        shape: shape.to_vec(),
    };
    let is_operators = entry.form == PlanForm::Operators;
    let rows = is_operators.then_some(577);
    let mut all = vec![
        tensor("attention_mask", true, DataType::Bool, &[None; 3]),
        tensor("input_ids", true, integers, &[None; 2]),
        tensor("position_ids", true, integers, &[None; 2]),
        tensor("logits_rows", true, integers, &[None; 2]),
        tensor("logits", false, DataType::F32, &[None, None, Some(320)]),
    ];
    if is_operators {
        all.push(tensor("write_indices", true, integers, &[None]));
    }
    if spec.windows.iter().any(Option::is_some) {
        all.push(tensor("kv_positions", true, integers, &[None; 2]));
    }
    if !entry.captured.is_empty() {
        let width = Some(entry.captured.len() * spec.hidden_size);
        all.push(tensor("features", false, DataType::F32, &[None, None, width]));
    }
    for (layer, what) in (0..2).flat_map(|layer| [(layer, "key"), (layer, "value")]) {
        let shape = [None, Some(8), rows, Some(64)];
        let element = if entry.kv == PlanKv::Fp8 { DataType::F8E4M3 } else { DataType::Bf16 };
        all.push(tensor(&format!("past_key_values.{layer}.{what}"), true, element, &shape));
        all.push(tensor(&format!("present.{layer}.{what}"), false, element, &shape));
    }
    all
}

#[test]
fn plans_of_both_forms_are_taken_as_they_are() {
    for (form, windows, captured, integers) in [
        (PlanForm::Operators, &[][..], &[][..], DataType::I64),
        (PlanForm::Operators, &[None, Some(9)], &[0, 1, 2], DataType::I32),
        (PlanForm::Primitives, &[Some(9), None], &[], DataType::I64),
        (PlanForm::Primitives, &[], &[0, 1, 2], DataType::I64),
    ] {
        let (spec, entry) = (spec(windows), entry(form, captured));
        let ports = Ports::new(&tensors(&spec, &entry, integers), &spec, &entry).unwrap();
        assert_eq!(ports.input.integer_bytes, if integers == DataType::I64 { 8 } else { 4 });
        assert_eq!(ports.input.has_kv_positions, !windows.is_empty());
        assert_eq!(ports.input.appends, form == PlanForm::Primitives);
        assert_eq!(ports.features_len, captured.len() * spec.hidden_size);
        assert_eq!(ports.cache[3], ["past_key_values.1.value", "present.1.value"]);
    }
}

#[test]
fn a_cache_of_8_bits_is_one_where_the_entry_says_so() {
    let (spec, plain) = (spec(&[]), entry(PlanForm::Primitives, &[]));
    let fp8 = PlanEntry { kv: PlanKv::Fp8, ..plain.clone() };
    let ports = |of: &PlanEntry, entry: &PlanEntry| {
        Ports::new(&tensors(&spec, of, DataType::I64), &spec, entry).map_err(|error| error.to_string())
    };
    assert!(ports(&fp8, &fp8).is_ok());
    let said = "\"past_key_values.0.key\" Bf16 [any, 8, any, 64], expected an input F8E4M3 [any, 8, any, 64]";
    assert!(ports(&plain, &fp8).unwrap_err().contains(said));
    let said = "\"past_key_values.0.key\" F8E4M3 [any, 8, any, 64], expected an input Bf16 [any, 8, any, 64]";
    assert!(ports(&fp8, &plain).unwrap_err().contains(said));
}

type Damage = fn(&mut Vec<TensorInfo>);

#[test]
fn a_plan_with_anything_else_is_refused_by_name() {
    let (spec, entry) = (spec(&[]), entry(PlanForm::Operators, &[]));
    let damages: [(Damage, &str); 8] = [
        (|all| all.retain(|tensor| tensor.name != "write_indices"), "has no input \"write_indices\""),
        (|all| all.retain(|tensor| tensor.name != "present.1.key"), "has no output \"present.1.key\""),
        (
            |all| all[0].data_type = DataType::F32,
            "\"attention_mask\" F32 [any, any, any], expected an input Bool [any, any, any]",
        ),
        (
            |all| all[4].shape[2] = Some(319),
            "\"logits\" F32 [any, any, 319], expected an output F32 [any, any, 320]",
        ),
        (|all| all[4].shape.truncate(2), "\"logits\" F32 [any, any], expected"),
        (|all| all[1].data_type = DataType::I32, "integers of different widths"),
        (
            |all| {
                let mut more = all[1].clone();
                more.name = "token_type_ids".into();
                all.push(more);
            },
            "has the input \"token_type_ids\" I64 [any, any], which this version does not know",
        ),
        (
            |all| {
                let past = all.iter_mut().find(|tensor| tensor.name == "past_key_values.0.key").unwrap();
                past.data_type = DataType::F16;
                past.shape[2] = Some(512);
            },
            "\"past_key_values.0.key\" F16 [any, 8, 512, 64], expected an input Bf16 [any, 8, 577, 64]",
        ),
    ];
    for (damage, said) in damages {
        let mut all = tensors(&spec, &entry, DataType::I64);
        damage(&mut all);
        let error = Ports::new(&all, &spec, &entry).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("takt build DIR --tensorrt --plans-only"), "{error}");
    }
}
