//! RoPE frequencies against transformers'.

use serde_json::{Value, json};

use super::*;

fn rope(head_dim: usize, config: Value) -> Result<RopeSpec> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    let shape = RopeShape { head_dim, max_position_embeddings: 131_072 };
    rope_spec(&Config::read(file.path())?, shape)
}

/// Against `LlamaRotaryEmbedding(LlamaConfig(head_dim=…, max_position_embeddings=131072, rope_parameters=…))` of
/// transformers 5.23.0 with torch 2.15.0: `inv_freq` printed with nine digits, and `attention_scaling`.
fn assert_like_transformers(head_dim: usize, parameters: Value, inv_freq: &str, attention_factor: f32) {
    let found = rope(head_dim, json!({"rope_parameters": parameters})).unwrap();
    let inv_freq: Vec<f32> = inv_freq.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(found.inv_freq.len(), inv_freq.len());
    for (idx, (found, wanted)) in found.inv_freq.iter().zip(&inv_freq).enumerate() {
        assert!(
            (found / wanted - 1.0).abs() < 2.5e-7,
            "{parameters}: pair {idx} is {found:e}, not {wanted:e}"
        );
    }
    assert!((found.attention_factor / attention_factor - 1.0).abs() < 1e-7, "{}", found.attention_factor);
}

#[test]
fn linear_scaling_equals_transformers() {
    assert_like_transformers(
        16,
        json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
        "0.400000006 0.1264911 0.0399999991 0.0126491114 0.00399999972 0.00126491114 \
         0.000400000019 0.000126491112",
        1.0,
    );
}

#[test]
fn llama3_scaling_equals_transformers() {
    let parameters = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    assert_like_transformers(
        64,
        parameters,
        "1.0 0.663601279 0.440366626 0.292227834 0.193922758 0.128687382 0.0853971019 \
         0.0566696189 0.0376060307 0.0249554086 0.0165604409 0.0109895291 0.00729266508 \
         0.00483942125 0.00321144611 0.00129054801 0.000429556705 9.70828623e-05 1.94616387e-05 \
         1.29147675e-05 8.57025589e-06 5.68723226e-06 3.77405445e-06 2.50446715e-06 \
         1.66196742e-06 1.10288363e-06 7.31874934e-07 4.85673127e-07 3.22293289e-07 2.1387423e-07 \
         1.41927202e-07 9.41830649e-08",
        1.0,
    );
}

#[test]
fn yarn_scaling_equals_transformers() {
    let parameters = json!({"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
        "original_max_position_embeddings": 32768});
    assert_like_transformers(
        64,
        parameters,
        "1.0 0.649381638 0.421696514 0.273841977 0.177827939 0.115478203 0.0749894157 \
         0.0486967526 0.0316227786 0.0205352511 0.0133352149 0.00865964312 0.00515479548 \
         0.0030431177 0.00177853031 0.00102661771 0.000583333371 0.000324690831 0.000175706868 \
         9.12806499e-05 4.44569851e-05 2.88695483e-05 1.87473561e-05 1.21741887e-05 \
         7.90569356e-06 5.13381246e-06 3.33380353e-06 2.16491094e-06 1.40585337e-06 9.1293532e-07 \
         5.92843435e-07 3.84981632e-07",
        1.138_629_4,
    );
}

#[test]
fn yarn_with_mscale_and_betas_equals_transformers() {
    let parameters = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
        "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.1, "beta_fast": 16,
        "beta_slow": 2});
    assert_like_transformers(
        32,
        parameters,
        "1.0 0.562341332 0.316227764 0.177827939 0.100000001 0.0562341288 0.0316227786 \
         0.0143151497 0.00609999988 0.00233371649 0.000695701048 4.44569851e-05 2.49999994e-05 \
         1.40585325e-05 7.90569447e-06 4.44569832e-06",
        0.896_873_4,
    );
}

#[test]
fn yarn_without_truncation_equals_transformers() {
    let parameters = json!({"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0,
        "original_max_position_embeddings": 4096, "truncate": false});
    assert_like_transformers(
        32,
        parameters,
        "1.0 0.47478205 0.225418001 0.107024416 0.0508132726 0.0193350017 0.00679495931 \
         0.00209379266 0.000456483918 3.83088118e-05 1.8188337e-05 8.63549576e-06 4.09997847e-06 \
         1.94659629e-06 9.24208962e-07 4.38797855e-07",
        1.346_573_6,
    );
}

#[test]
fn yarn_with_its_own_attention_factor_equals_transformers() {
    let parameters = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
        "original_max_position_embeddings": 2048, "attention_factor": 0.8});
    assert_like_transformers(
        32,
        parameters,
        "1.0 0.562341332 0.316227764 0.177827939 0.100000001 0.0492048636 0.0237170849 \
         0.0111142462 0.00499999989 0.00210877997 0.000790569466 0.000222284929 0.000125000006 \
         7.02926627e-05 3.95284733e-05 2.22284925e-05",
        0.8,
    );
}

#[test]
fn the_old_form_means_the_same_as_the_new_one() {
    let new = json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}});
    for old in [
        json!({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
        json!({"rope_theta": 5000, "rope_scaling": {"rope_type": "linear", "factor": 3}, "rope_parameters": null}),
    ] {
        assert_eq!(rope(16, new.clone()).unwrap(), rope(16, old).unwrap());
    }
    assert_eq!(
        rope(8, json!({})).unwrap(),
        rope(8, json!({"rope_theta": 10000.0, "rope_scaling": null})).unwrap()
    );
}

#[test]
fn a_base_or_factor_that_makes_no_sense_is_refused() {
    for parameters in [
        json!({"rope_type": "default", "rope_theta": 0.5}),
        json!({"rope_type": "yarn", "factor": -4.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
        json!({"rope_type": "default", "factor": 8.0}),
    ] {
        assert!(rope(16, json!({"rope_parameters": parameters.clone()})).is_err(), "{parameters}");
    }
}
