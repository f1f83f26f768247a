//! Bit for bit against `tests/fixtures/quant`, computed by NVIDIA ModelOpt's rules and ml_dtypes.

use safetensors::SafeTensors;

use super::{WeightKind, e4m3, quantize};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../tests/fixtures/quant/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|raw| f32::from_le_bytes(raw.try_into().unwrap())).collect()
}

#[test]
fn nvfp4_codes_scales_and_values_equal_modelopts_in_every_case() {
    let bytes = read("nvfp4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut cases: Vec<&str> =
        file.names().into_iter().filter_map(|name| name.strip_suffix(".input")).collect();
    cases.sort_unstable();
    assert_eq!(cases, ["bf16_grid", "heavy_tail", "huge", "normal", "ties", "tiny", "zero_blocks"]);
    for case in cases {
        let shape = file.tensor(&format!("{case}.input")).unwrap().shape().to_vec();
        let input = floats(&file, &format!("{case}.input"));
        let found = quantize(WeightKind::Nvfp4, (shape[0], shape[1]), &input, 2).unwrap();
        let global_scale = floats(&file, &format!("{case}.global_scale"))[0];
        assert_eq!(found.scale_2.map(f32::to_bits), Some(global_scale.to_bits()), "{case}: global scale");
        assert_eq!(
            found.scales,
            file.tensor(&format!("{case}.block_scale_e4m3")).unwrap().data(),
            "{case}: scales"
        );
        assert_eq!(found.weight, file.tensor(&format!("{case}.packed")).unwrap().data(), "{case}: codes");
        let wanted = floats(&file, &format!("{case}.dequantized"));
        let mut row = vec![0.0f32; shape[1]];
        for (row_idx, wanted_row) in wanted.chunks_exact(shape[1]).enumerate() {
            found.view().dequantize_row(row_idx, &mut row);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&row), bits(wanted_row), "{case}: values of row {row_idx}");
        }
    }
}

#[test]
fn e4m3_decodes_all_codes_and_encodes_saturating_as_ml_dtypes_does() {
    let bytes = read("fp8_e4m3.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let codes = file.tensor("decode_codes").unwrap().data().to_vec();
    assert_eq!(codes.len(), 256);
    for (&code, wanted) in codes.iter().zip(floats(&file, "decode_values")) {
        let found = e4m3::decode(code);
        // The fixture holds 0 for the two NaN codes.
        let is_nan_code = code & 0x7f == 0x7f;
        assert_eq!(found.is_nan(), is_nan_code, "{code:#x}");
        assert!(is_nan_code || found.to_bits() == wanted.to_bits(), "{code:#x}: {found} {wanted}");
    }
    let inputs = floats(&file, "encode_input");
    let wanted = file.tensor("encode_codes_saturating").unwrap().data();
    assert_eq!(inputs.len(), wanted.len());
    for (input, &wanted) in inputs.into_iter().zip(wanted) {
        assert_eq!(e4m3::encode(input), wanted, "{input:e} ({:#x})", input.to_bits());
    }
}
