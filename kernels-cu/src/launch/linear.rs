//! Products of quantized matrices and BF16 rows.
